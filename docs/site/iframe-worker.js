// Browsers start no worker for a page that was opened as a file. There the search's worker runs in a hidden frame
// instead: a script of one global scope, to which messages are handed, and which hands back its own.
if (location.protocol === "file:") {
  window.Worker = class {
    #frame = document.createElement("iframe");
    #waiting = [];  // messages to a script that is not there yet; null once it is
    onmessage = null;
    onerror = null;

    constructor(url) {
      this.#frame.hidden = true;
      document.body.append(this.#frame);
      const scope = this.#frame.contentWindow;
      scope.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }));
      const script = scope.document.createElement("script");
      script.src = new URL(url, document.baseURI).href;
      script.onload = () => {
        const waiting = this.#waiting;
        this.#waiting = null;
        waiting.forEach((data) => this.#deliver(data));
      };
      script.onerror = (event) => this.onerror?.(event);
      scope.document.body.append(script);
    }

    postMessage(data) {
      if (this.#waiting) this.#waiting.push(data);
      else this.#deliver(data);
    }

    terminate() {
      this.#frame.remove();
    }

    #deliver(data) {
      setTimeout(() => this.#frame.contentWindow?.onmessage({ data }));
    }
  };
}
