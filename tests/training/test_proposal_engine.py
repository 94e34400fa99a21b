"""Proposals in a loop that is not ours: made when due, found again after a kill, moved by anyone's augmentation."""

import threading

import numpy as np
import pytest
import torch
from small_data import write_folder
from torch.utils.data import DataLoader, Dataset

import regloss
from regloss.errors import ReglossError, UsageError
from regloss.training import proposal_engine

IDS = ["a", "b/c", "d e"]


def images(size=(6, 8)):
    """Three images with a click of class 0 on the left and one of class 1 on the right; "a" is mirrored."""
    image = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0)) * 0.1
    image[:, :, :, size[1] // 2 :] += 0.8
    labels = torch.full((3, *size), 255)
    labels[:, 2, 1], labels[:, 2, -2] = 0, 1
    image[0], labels[0] = image[0].flip(-1), labels[0].flip(-1)
    return image, labels


def batches(ids=IDS):
    image, labels = images()
    return [regloss.Batch(image[[n]], labels[[n]], ids=[IDS[n]]) for n in map(IDS.index, ids)]


def loop(update_every=2):
    return regloss.TrustRegion(regloss.GridCRF(weight=1.0), update_every=update_every)


def network():
    made = torch.nn.Conv2d(1, 2, 1)
    torch.nn.init.zeros_(made.weight)
    torch.nn.init.zeros_(made.bias)
    return made


def expected():
    """The halves of the images, which the solver finds."""
    return (images()[0][:, 0] > 0.5).to(torch.uint8).numpy()


class TestRefresh:
    @pytest.mark.parametrize(("every", "when"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (0, [0])])
    def test_when_they_are_due(self, tmp_path, every, when):
        proposals = regloss.Proposals(loop(every), IDS, tmp_path)
        made = [epoch for epoch in range(5) if proposals.refresh(epoch, network(), batches())]
        assert made == when
        assert (proposals.generation, proposals.epoch) == (len(when) - 1, when[-1])

    def test_what_is_kept(self, tmp_path):
        proposals = regloss.Proposals(loop(), IDS, tmp_path)
        numbers = proposals.refresh(0, network().train(), batches())
        for sample_id, labels in zip(IDS, expected(), strict=True):
            np.testing.assert_array_equal(proposals.labels(sample_id), labels)
        assert 0 < numbers["proposal-energy-after"] <= numbers["proposal-energy-before"]

    @pytest.mark.parametrize("large", [False, True])
    def test_the_network_waits_for_the_solver_of_large_images(self, tmp_path, monkeypatch, large):
        monkeypatch.setattr(proposal_engine, "_LARGE", 0 if large else 2**28)
        coupled, model, done, seen = loop(), network(), threading.Event(), []
        propose = coupled.propose

        def held(*given):
            done.wait()  # small images: until the network has seen them all
            seen.append("solver")
            return propose(*given)

        def watched(image):
            seen.append("network")
            if large or seen.count("network") == len(IDS):
                done.set()
            return model(image)

        monkeypatch.setattr(coupled, "propose", held)
        regloss.Proposals(coupled, IDS, tmp_path).refresh(0, watched, batches())
        assert seen == (["network", "solver"] * 3 if large else ["network"] * 3 + ["solver"] * 3)

    def test_the_network_is_left_as_it_was(self, tmp_path):
        seen = []

        class Watched(torch.nn.Conv2d):
            def forward(self, image):
                seen.append((self.training, torch.is_grad_enabled()))
                return super().forward(image)

        watched = Watched(1, 2, 1).train()
        regloss.Proposals(loop(), IDS, tmp_path).refresh(0, watched, batches())
        assert seen == [(False, False)] * 3
        assert watched.training

    def test_the_solver_starts_at_the_last_proposals(self, tmp_path):
        """What the second solver starts from has the energy that the first one ended with."""
        proposals = regloss.Proposals(loop(1), IDS, tmp_path)
        first, second = (proposals.refresh(epoch, network(), batches()) for epoch in (0, 1))
        assert first["proposal-energy-before"] > first["proposal-energy-after"]
        assert second["proposal-energy-before"] == pytest.approx(first["proposal-energy-after"], abs=1e-12)

    def test_a_data_set_loads_its_images_itself(self, tmp_path):
        settings = {"root": str(write_folder(tmp_path / "data")), "classes": 3, "split": {"train": ["i0", "i3"]}}
        proposals = regloss.Proposals(loop(), regloss.create("dataset", "folder", **settings), tmp_path / "proposals")
        assert proposals.ids == ["i0", "i3"]
        torch.manual_seed(0)
        proposals.refresh(0, torch.nn.Conv2d(1, 3, 1))
        assert proposals.labels("i3").shape == (24, 28)
        assert proposals.labels("i3")[17, 20] == 2  # a scribble
        assert 255 not in proposals.labels("i0")


class TestAfterAKill:
    def run(self, folder, epochs, **options):
        proposals = regloss.Proposals(loop(2), IDS, folder, **options)
        return proposals, [bool(proposals.refresh(epoch, network(), batches())) for epoch in epochs]

    def test_what_was_made_is_used(self, tmp_path):
        self.run(tmp_path, range(4))
        proposals, made = self.run(tmp_path, (3, 4), resume=True)  # from a checkpoint at the beginning of epoch 3
        assert made == [False, True]
        assert (proposals.generation, proposals.epoch) == (2, 4)

    def test_those_of_the_epoch_that_is_begun_again_are_not_made_again(self, tmp_path):
        self.run(tmp_path, range(3))
        proposals, made = self.run(tmp_path, (2, 3), resume=True)
        assert made == [False, False]
        assert proposals.epoch == 2

    def test_those_of_epochs_that_are_lost_are_removed(self, tmp_path):
        self.run(tmp_path, range(5))
        proposals, _ = self.run(tmp_path, (1,), resume=True)
        assert proposals.store.generations() == [0]
        assert proposals.epoch == 0

    def test_half_a_generation_does_not_count(self, tmp_path):
        proposals, _ = self.run(tmp_path, range(2))
        proposals.store.write(1, "a", expected()[0])
        resumed, made = self.run(tmp_path, (2,), resume=True)
        assert made == [True]
        np.testing.assert_array_equal(resumed.labels("b/c"), expected()[1])

    def test_an_older_run_is_not_gone_on_with_unasked(self, tmp_path):
        self.run(tmp_path, (0,))
        with pytest.raises(UsageError, match=r"proposals of an earlier run.*resume=True"):
            self.run(tmp_path, (0,))
        assert self.run(tmp_path / "new", (0,), resume=True)[1] == [True]  # where there is nothing, it begins

    def test_a_checkpoint_says_which_were_in_use(self, tmp_path):
        proposals, _ = self.run(tmp_path, range(3))
        state = proposals.state_dict()
        self.run(tmp_path, range(3, 5), resume=True)
        again = regloss.Proposals(loop(2), IDS, tmp_path)
        again.load_state_dict(state)
        assert again.state_dict() == {"generation": 1, "epoch": 2}
        assert again.store.generations() == [0, 1]
        assert not again.refresh(3, network(), batches())
        again.clear_before(2)
        with pytest.raises(UsageError, match="does not hold, those of generation 0"):
            again.load_state_dict({"generation": 0, "epoch": 0})

    def test_what_no_checkpoint_needs_is_removed(self, tmp_path):
        proposals, _ = self.run(tmp_path, range(5))
        assert proposals.store.generations() == [0, 1, 2]
        proposals.clear_before(3)
        assert proposals.store.generations() == [1, 2]

    def test_a_marker_without_an_epoch(self, tmp_path):
        self.run(tmp_path, (0,))
        (tmp_path / "generation-0000" / "complete.json").write_text('{"proposals": 3}')
        with pytest.raises(UsageError, match="does not say which epoch"):
            self.run(tmp_path, (1,), resume=True)


class Crops(Dataset):
    """What a user's data set does: labels and proposal through one and the same transform."""

    def __init__(self, proposals, transform):
        self.proposals, self.transform = proposals, transform
        self.images, self.scribbles = images()

    def __len__(self):
        return len(IDS)

    def __getitem__(self, place):
        channels = self.proposals.beside(self.scribbles[place], IDS[place])
        return self.transform(self.images[place]), self.transform(channels)


def as_it_is(values):
    return values


class TestAugmentation:
    def test_a_proposal_goes_where_its_labels_go(self, tmp_path):
        """A flip, a quarter turn and a crop, by slices; the proposal stays what the image shows."""
        proposals = regloss.Proposals(loop(), IDS, tmp_path)
        proposals.refresh(0, network(), batches())
        crops = Crops(proposals, lambda values: values.flip(-1).rot90(1, (-2, -1))[..., 1:7, :5])
        image, channels = next(iter(DataLoader(crops, batch_size=3)))
        labels, proposal = proposals.apart(channels)
        assert labels.shape == proposal.labels.shape == (3, 6, 5)
        torch.testing.assert_close(proposal.labels, (image[:, 0] > 0.5).long())
        assert bool((proposal.labels == labels)[labels != 255].all())
        assert int((labels != 255).sum()) == 6

    def test_processes_that_stay_see_new_proposals(self, tmp_path):
        proposals = regloss.Proposals(loop(1), IDS, tmp_path)
        proposals.refresh(0, network(), batches())
        crops = Crops(proposals, as_it_is)
        loader = DataLoader(crops, 3, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver")
        assert bool((next(iter(loader))[1][:, 1] == torch.from_numpy(expected())).all())
        for sample_id in IDS:
            proposals.store.write(1, sample_id, np.full((6, 8), 7, np.uint8))
        proposals.store.finish(1, 3, 1)
        assert bool((next(iter(loader))[1][:, 1] == 7).all())

    def test_they_are_learnt(self, tmp_path):
        """A network that sees scribbles and proposals alone learns the halves."""
        proposals, model = regloss.Proposals(loop(5), IDS, tmp_path), network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
        for epoch in range(20):
            proposals.refresh(epoch, model, batches())
            for image, channels in DataLoader(Crops(proposals, lambda values: values.flip(-1)), batch_size=3):
                labels, proposal = proposals.apart(channels)
                loss = proposals.loop.objective(model(image), regloss.Batch(image, labels), proposal)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        np.testing.assert_array_equal(model(images()[0]).argmax(1).numpy(), expected())


class TestRefusals:
    @pytest.mark.parametrize("every", ["step", "never"])
    def test_loops_without_proposals_to_keep(self, tmp_path, every):
        with pytest.raises(UsageError, match="makes no proposals to be kept"):
            regloss.Proposals(loop(every), IDS, tmp_path)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (["a", "b", "a"], "given twice: a"),
            ([], "at least one image"),
            (["../a"], "file names; got '../a'"),
            (["/a"], "file names"),
            ([""], "file names"),
            ([3], "file names; got 3"),
            ("cat", "several ids, or a data set; got the text 'cat'"),
        ],
    )
    def test_ids(self, tmp_path, ids, message):
        with pytest.raises(UsageError, match=message):
            regloss.Proposals(loop(), ids, tmp_path)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"loop": "trust-region"}, "loop must be an outer loop.*got 'trust-region'"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"batch_size": 2.5}, "batch_size of Proposals must be a whole number; got 2.5"),
            ({"slab": 1}, "slab must be at least 2 slices; got 1"),
            ({"slab": "4"}, "slab of Proposals must be a whole number or None; got '4'"),
            ({"resume": "no"}, "resume of Proposals must be True or False; got 'no'"),
            ({"supervision": "scribbles"}, "supervision of Proposals must be 'scribble', 'label'; got 'scribbles'"),
            ({"batchsize": 4}, "has no setting 'batchsize'. Did you mean 'batch_size'"),
        ],
    )
    def test_settings(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message):
            regloss.Proposals(**{"loop": loop(), "samples": IDS, "folder": tmp_path / "p", **settings})
        assert not (tmp_path / "p").exists()

    def test_batches(self, tmp_path):
        proposals = regloss.Proposals(loop(), IDS, tmp_path)
        image, labels = images()
        with pytest.raises(UsageError, match="refresh needs batches"):
            proposals.refresh(0, network())
        for epoch in (-1, 0.5, True):
            with pytest.raises(UsageError, match="number of the epoch that begins, counted from 0; got"):
                proposals.refresh(epoch, network(), batches())
        with pytest.raises(UsageError, match="give the batches their ids"):
            proposals.refresh(0, network(), [regloss.Batch(image, labels)])
        with pytest.raises(UsageError, match="not made for: x"):
            proposals.refresh(0, network(), [regloss.Batch(image[:1], labels[:1], ids=["x"])])
        with pytest.raises(ReglossError, match="1 of 3 images got no proposal: d e"):
            proposals.refresh(0, network(), batches(IDS[:2]))
        with pytest.raises(ReglossError, match="call refresh first"):
            proposals.labels("a")
        assert proposals.refresh(0, network(), batches())

    def test_networks(self, tmp_path):
        proposals = regloss.Proposals(loop(), IDS, tmp_path)
        with pytest.raises(UsageError, match=r"at most 255 classes; got 256"):
            proposals.refresh(0, torch.nn.Conv2d(1, 256, 1), batches())
        with pytest.raises(ReglossError, match=r"output became NaN or infinite\. .*: a"):
            proposals.refresh(0, lambda image: torch.full((1, 2, 6, 8), float("nan")), batches())
        with pytest.raises(UsageError, match=r"logits of \(8, 10\), larger than their image of \(6, 8\)"):
            proposals.refresh(0, torch.nn.Conv2d(1, 2, 1, padding=1), batches())
        with pytest.raises(UsageError, match=r"No proposal for a: .*at least two"):
            proposals.refresh(0, torch.nn.Conv2d(1, 1, 1), batches())

    def test_channels(self, tmp_path):
        proposals = regloss.Proposals(loop(), IDS, tmp_path)
        proposals.refresh(0, network(), batches())
        with pytest.raises(UsageError, match=r"a are \(4, 8\), its proposal is \(6, 8\): put them together before"):
            proposals.beside(torch.zeros(4, 8), "a")
        with pytest.raises(UsageError, match="nearest neighbour"):
            proposals.beside(torch.full((6, 8), 0.5), "a")
        with pytest.raises(UsageError, match="two channels"):
            proposals.apart(torch.zeros(2, 6, 8))
        with pytest.raises(UsageError, match="nearest neighbour"):
            proposals.apart(torch.full((1, 2, 6, 8), 0.5))
