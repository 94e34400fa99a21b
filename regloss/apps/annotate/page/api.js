// Requests to the server. The page's own address ends with the token, so that relative addresses carry it.

export class Problem extends Error {
  constructor(status, problem, reason) {
    super(problem);
    this.status = status;
    this.reason = reason ?? "";
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = await response.json();
  } catch {
    said = { problem: `The server answered ${response.status}.` };
  }
  throw new Problem(response.status, said.problem, said.reason);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, content, options = {}) {
  const body = JSON.stringify(content);
  const headers = { "content-type": "application/json" };
  // A stroke that is sent as its tab is closed still arrives, unless it is too long for that.
  const keepalive = body.length < 60000;
  return (await request(path, { method: "POST", body, headers, keepalive, ...options })).json();
}

// A line of JSON and a label map; null where there is nothing yet.
export async function labels(path, options) {
  const response = await request(path, options);
  if (response.status === 204) return null;
  const bytes = new Uint8Array(await response.arrayBuffer());
  const end = bytes.indexOf(10);
  return { ...JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), data: bytes.subarray(end + 1) };
}
