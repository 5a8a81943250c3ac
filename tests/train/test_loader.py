"""The loader: the same bits for any number of workers and any start, errors with a place, no orphan processes."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch
from sample_dirs import mixed_directory, renderer, write_manifest

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.schema import Sample, Turn
from phi3v_data.validate import validate
from phi3v_train.data import workers
from phi3v_train.data.encode import EncodeOptions, Encoder
from phi3v_train.data.loader import MicroBatch, TrainLoader
from phi3v_train.data.order import SampleOrder, SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import choose_eval_split, open_source, open_sources, require_valid, resolve_num_crops
from phi3v_train.data.workers import Workers, measure_all
from phi3v_train.models.renderer import NO_LABEL

RANDOM = EncodeOptions(answer_choice="random", seed=3)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("loader")
    return [mixed_directory(root / "a", 11), mixed_directory(root / "b", 6)]


def loader(directories, *, batch_size=4, mix=(), options=RANDOM, **settings) -> TrainLoader:
    sources = open_sources(directories, "train", num_crops=1)
    order = SampleOrder(tuple(map(len, sources)), batch_size, seed=5, mix=mix)
    return TrainLoader(
        Reader(sources, Encoder(renderer(), options)),
        order,
        **{"micro_batch_size": 2, **settings},
    )


def batches(made: TrainLoader, start=0, stop=None) -> list[list[MicroBatch]]:
    with made:
        return [list(step) for step in made.steps(start, made.order.total_steps(2) if stop is None else stop)]


def assert_equal(left: list[list[MicroBatch]], right: list[list[MicroBatch]]) -> None:
    assert [len(step) for step in left] == [len(step) for step in right]
    for one, other in zip(chain.from_iterable(left), chain.from_iterable(right), strict=True):
        assert one.measures == other.measures
        assert one.shape == other.shape
        assert one.inputs.keys() == other.inputs.keys()
        for name, tensor in one.inputs.items():
            assert torch.equal(tensor, other.inputs[name]), name


@pytest.mark.parametrize("pack", [False, True])
def test_same_bits_for_any_workers_and_any_start(directories, pack):
    expected = batches(loader(directories, pack=pack))
    assert len(expected) == 10
    assert_equal(batches(loader(directories, pack=pack, num_workers=2)), expected)
    assert_equal(batches(loader(directories, pack=pack, num_workers=1, prefetch=1), 3, 8), expected[3:8])
    assert_equal(batches(loader(directories, pack=pack), 7), expected[7:])


def test_an_epoch_has_every_row_once_and_counts_agree(directories):
    with loader(directories) as made:
        seen = []
        for step in made.steps(0, made.order.epoch_steps):
            parts = list(step)
            assert len(parts) == len(step)
            plan = step.plan
            assert plan.num_supervised == sum(part.num_supervised for part in parts)
            for part in parts:
                assert part.num_supervised == int((part.inputs["labels"] != NO_LABEL).sum())
                assert part.shape.num_samples == len(part.measures)
            assert plan.num_tokens == sum(part.shape.num_tokens for part in parts)
            assert plan.num_images == sum(part.shape.num_images for part in parts)
            seen += [measure.provenance for part in parts for measure in part.measures]
    assert Counter((place.directory, place.row) for place in seen) == Counter(
        [(str(directories[0]), row) for row in range(11)] + [(str(directories[1]), row) for row in range(6)]
    )


@pytest.mark.parametrize("pack", [False, True])
def test_processes_share_a_step(directories, pack):
    """Several processes together compute what one computes alone, and all know the same totals."""
    alone = loader(directories, pack=pack)
    ranks = [loader(directories, pack=pack, rank=rank, world_size=2) for rank in range(2)]
    for one, *shares in zip(alone.steps(0, 5), *(made.steps(0, 5) for made in ranks), strict=True):
        whole = [part for part in one if part.measures]
        split = [list(share) for share in shares]
        assert len({len(parts) for parts in split}) == 1
        real = [part for parts in split for part in parts if part.measures]
        assert {share.plan.num_supervised for share in shares} == {one.plan.num_supervised}
        assert one.plan.num_supervised == sum(part.num_supervised for part in real)
        places = Counter(measure.provenance for part in real for measure in part.measures)
        assert places == Counter(measure.provenance for part in whole for measure in part.measures)
        if len(one.plan.refs) == 4:
            assert {part.measures for part in real} == {part.measures for part in whole}
        for part in (part for parts in split for part in parts if not part.measures):
            assert part.num_supervised == 0
            assert (part.inputs["labels"] == NO_LABEL).all()
            assert part.inputs["input_ids"].numel()


def test_a_short_last_step_has_a_filler(directories):
    made = loader(directories, rank=1, world_size=2, micro_batch_size=1)
    steps = made.steps(4, 5)
    last = next(steps)
    assert len(last.plan.refs) == 1
    (part,) = list(last)
    assert not part.measures
    assert part.measures == ()
    assert next(steps, None) is None
    with pytest.raises(RuntimeError, match="micro-batches of step 4 are gone"):
        list(last)


def test_micro_batches_not_taken_are_passed_over(directories):
    expected = batches(loader(directories))
    with loader(directories, num_workers=2) as made:
        for wanted, step in zip(expected, made.steps(0, 10), strict=True):
            assert_equal([[next(iter(step))]], [wanted[:1]])


def test_another_epoch_draws_another_answer(directories):
    reader = Reader(open_sources(directories, "train", num_crops=1), Encoder(renderer(), RANDOM))
    drawn = {tuple(reader.tokenize(SampleRef(0, 1, epoch))[1].labels.tolist()) for epoch in range(20)}
    assert len(drawn) == 4
    assert len({tuple(reader.tokenize(SampleRef(0, 2, epoch))[1].labels.tolist()) for epoch in range(20)}) == 1


def test_mix_reaches_both_directories(directories):
    with loader(directories, mix=(1.0, 4.0)) as made:
        drawn = Counter(
            measure.provenance.directory for plan in made.plans(0, made.order.epoch_steps) for measure in plan.measures
        )
    assert drawn == {str(directories[0]): 3, str(directories[1]): 14}


def test_skipped_samples_are_not_read(tmp_path):
    """A resumed run does not open images of earlier steps; they may be gone."""
    directory = mixed_directory(tmp_path / "d", 12)
    made = loader([directory])
    ahead = {ref.row for step in (2,) for ref in made.order.batch(step)}
    for path in list((directory / "images").rglob("p*")):
        if int(path.stem[1:].split("_")[0]) not in ahead:
            path.unlink()
    assert len(batches(made, 2, 3)) == 1
    with pytest.raises(UserError, match="cannot be read"):
        batches(loader([directory]), 0, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_workers_name_the_row(tmp_path, num_workers):
    directory = mixed_directory(tmp_path / "d", 8)
    (directory / "images" / "2" / "p2_1.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"set_train\.jsonl:3 \(id 'train-0000000002'\): an image cannot be read"):
        batches(loader([directory], num_workers=num_workers))
    directory = mixed_directory(tmp_path / "e", 8)
    options = EncodeOptions(max_length=100)
    with pytest.raises(
        UserError, match=r"set_train\.jsonl:\d+ \(id 'train-\d+'\): it has \d+ tokens, over --max_length"
    ):
        batches(loader([directory], options=options, num_workers=num_workers))


def test_cut_samples_are_counted(directories):
    options = EncodeOptions(max_length=1000, truncate="turns")
    with loader(directories, options=options) as made:
        plans = list(made.plans(0, made.order.epoch_steps))
    assert sum(plan.num_truncated for plan in plans) > 0
    assert all(measure.cost.tokens <= 1000 for plan in plans for measure in plan.measures)


def test_a_killed_worker_is_reported(directories):
    with loader(directories, num_workers=1) as made:
        steps = made.steps(0, 1000)
        next(steps)
        for child in psutil.Process().children(recursive=True):
            if "forkserver" in " ".join(child.cmdline()) and child.children() == []:
                child.kill()
        with pytest.raises(UserError, match=r"worker process .*\(lower --num_workers\)"):
            deque(chain.from_iterable(steps), maxlen=0)
        with pytest.raises(UserError, match="worker process"):  # now where work is handed out, no longer at a result
            next(made.steps(0, 1000))


def test_the_other_workers_end_with_a_killed_one(directories):
    with loader(directories, num_workers=2) as made:
        steps = made.steps(0, 1000)
        next(steps)
        family = psutil.Process().children(recursive=True)
        workers = [each for each in family if "forkserver" in " ".join(each.cmdline()) and each.children() == []]
        assert len(workers) == 2
        workers[0].kill()
        with pytest.raises(UserError, match="worker process"):
            deque(chain.from_iterable(steps), maxlen=0)
        _, alive = psutil.wait_procs(workers, timeout=30)
        for each in alive:
            each.kill()
        assert alive == []


def test_a_worker_that_dies_while_it_hands_over_a_result_is_an_error(monkeypatch):
    """The pool has read the beginning of a result, whose rest never comes."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.2)
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))
    pid = pool.submit(os.getpid).result()
    pool._result_queue._writer._send(struct.pack("!i", 1000) + b"begun")
    future = pool.submit(time.sleep, 600)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a worker process that decodes images exited unexpectedly"):
        workers._Remote(future, pool).result()
    pool.shutdown(wait=True)


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_loader import loader
from pathlib import Path

if __name__ == "__main__":
    made = loader([Path(sys.argv[1])], num_workers=2)
    steps = made.steps(0, 10 ** 6)
    list(next(steps))
    print("going", flush=True)
    sys.stdin.read()
"""


def test_no_worker_outlives_a_killed_run(directories, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent)]))
    run = subprocess.Popen(
        [sys.executable, str(script), str(directories[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "going\n"
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) >= 3
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []


STOPPED = """
import sys
sys.path[:0] = {path!r}
from test_loader import loader
from pathlib import Path
from phi3v_train.data import workers

workers._PRELOAD += ("slow_import",)

if __name__ == "__main__":
    try:
        made = loader([Path(sys.argv[1])], num_workers=1)
        list(next(made.steps(0, 10 ** 6)))
    except KeyboardInterrupt:
        print("stopped")
"""


def test_ctrl_c_while_the_workers_start_is_for_the_main_process_alone(directories, tmp_path):
    """The terminal sends it to all processes of the command."""
    (tmp_path / "slow_import.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\ntime.sleep(3)\n"
    )
    (tmp_path / "run.py").write_text(STOPPED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    path = os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(directories[0])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    while not (tmp_path / "importing").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)  # the fork server holds the pipes to its end
    assert (output, errors) == ("stopped\n", "")


# Sources


def test_num_crops_comes_from_option_then_manifest_then_default(tmp_path):
    directory = mixed_directory(tmp_path / "d", 3)
    assert resolve_num_crops(None, None) == (16, "default")
    assert resolve_num_crops(None, None, None, 4) == (4, "processor")
    assert resolve_num_crops(None, None, 1, 4) == (1, "model")
    assert resolve_num_crops(2, None, 1, 4) == (2, "option")
    assert open_source(directory, "train").num_crops == 16
    write_manifest(directory, num_crops=4)
    source = open_source(directory, "train")
    assert (source.num_crops, source.num_crops_from) == (4, "dataset.json")
    source = open_source(directory, "train", num_crops=2)
    assert (source.num_crops, source.num_crops_from) == (2, "option")


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    directory = mixed_directory(tmp_path / "d", 3)
    with pytest.raises(UserError, match="give --data_dir"):
        open_sources([], "train")
    with pytest.raises(UserError, match="given twice"):
        open_sources([directory, str(directory) + "/."], "train")
    with pytest.raises(NotFoundError, match="did you mean 'train'"):
        open_sources([directory], "tran")
    write_manifest(directory, labelled=False)
    with pytest.raises(UserError, match="has no answers"):
        open_sources([directory], "train")
    assert len(open_source(directory, "train")) == 3


def test_the_split_to_evaluate_on(tmp_path):
    from sample_dirs import write_rows

    row = Sample(id="x", source="s", conversations=(Turn(user="u", assistant="a"),))
    directory = write_rows(tmp_path / "d", [row])
    assert choose_eval_split(directory, None) is None
    write_rows(directory, [row], "test")
    assert choose_eval_split(directory, None) == "test"
    write_rows(directory, [row], "dev")
    assert choose_eval_split(directory, None) == "dev"
    assert choose_eval_split(directory, "train") == "train"
    with pytest.raises(NotFoundError, match="no split 'val'"):
        choose_eval_split(directory, "val")


def test_a_directory_with_errors_is_refused(tmp_path):
    directory = mixed_directory(tmp_path / "d", 5)
    assert require_valid(directory).ok
    (directory / "images" / "2" / "p2_0.png").unlink()
    (directory / "images" / "1" / "p1_0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"d: 2 errors in the data, the first at set_train\.jsonl:\d .*\(image-"):
        require_valid(directory)


def test_training_believes_only_a_receipt_of_a_full_check_of_the_files_as_they_are(tmp_path):
    directory = mixed_directory(tmp_path / "d", 5)
    image = directory / "images" / "2" / "p2_0.png"
    whole, before = image.read_bytes(), image.stat()

    def put(content):
        image.write_bytes(content)
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert require_valid(directory).ok
    put(whole[:60] + bytes(len(whole) - 60))
    with pytest.raises(UserError, match=r"\(image-unreadable\)"):
        require_valid(directory)
    assert validate(directory, level="quick").summary.problems  # it knows what the full check found
    put(whole)
    assert require_valid(directory).ok
    put(whole[:60] + bytes(len(whole) - 60))
    assert validate(directory, level="quick").ok
    with pytest.raises(UserError, match=r"\(image-unreadable\)"):
        require_valid(directory)


def test_work_can_be_handed_to_the_workers_of_a_reader(directories):
    reader = Reader(open_sources(directories, "train", num_crops=1), Encoder(renderer()))
    refs = [(SampleRef(0, row, 0),) for row in range(11)]
    expected = [measure_all(reader, ref) for ref in refs]
    for num_workers in (0, 2):
        with Workers(reader, num_workers) as workers:
            assert list(workers.map(measure_all, refs)) == expected
