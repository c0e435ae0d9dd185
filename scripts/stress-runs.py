#!/usr/bin/env python3
"""Runs that are started twice, killed and left without room, at random moments: nothing that was saved may be lost.

    scripts/stress-runs.py locks|kills|disk [TIMES] [SEED]

takes target/release/warpo (or $WARPO) and a small model of the quickstart's tokenizer and pairs. `disk` mounts a small tmpfs
in a mount namespace of its own; where that is not permitted it says so and passes. Ends at the first fault."""
import hashlib, json, os, pathlib, random, shutil, signal, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARPO = os.environ.get("WARPO", str(ROOT / "target/release/warpo"))
STEPS = 60
TIMED = {"tokens_per_second", "speed_of_light", "step_ms", "memory_bytes"}


def setting(work):
    """A configuration of STEPS steps that take some ten milliseconds each."""
    shutil.copytree(ROOT / "examples/quickstart-model", work / "model")
    config = json.loads((work / "model/config.json").read_text())
    config.update(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    config.pop("head_dim", None)
    (work / "model/config.json").write_text(json.dumps(config))
    rows = (ROOT / "examples/data/persona_agreeableness/train.jsonl").read_text().splitlines()[:200]
    (work / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (work / "run.toml").write_text(
        f'[model]\npath = "model"\ninit = "random"\n[data]\ntrain = "rows.jsonl"\n[optim]\nlr = 1e-3\n[batch]\npairs = 8\n'
        f'tokens = 512\n[train]\nsteps = {STEPS}\nsave_every = 5\nkeep_checkpoints = 2\nprecision = "f32"\nthreads = 1\n'
        f'[cache]\ndir = "off"\n'
    )


def command(work, out, *extra):
    return [WARPO, "train", str(work / "run.toml"), "--device", "host", "--out", str(out), *extra]


def start(work, out, *extra):
    return subprocess.Popen(command(work, out, *extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(work, out, *extra):
    done = subprocess.run(command(work, out, *extra), capture_output=True, text=True)
    assert done.returncode == 0, f"{extra}: exit {done.returncode}: {done.stdout[-300:]} {done.stderr}"
    return done.stdout


def records(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def same(out, straight):
    assert (out / "final/model.safetensors").read_bytes() == (straight / "final/model.safetensors").read_bytes(), "other bits"
    assert records(out) == records(straight), "other records"
    left = [path.name for path in out.iterdir() if path.name.endswith(".part") or path.name == "run.lock"]
    assert not left, f"left behind: {left}"


def checkpoints(out):
    """Step to hash of everything in the folder."""
    found = {}
    for path in out.glob("checkpoint-*") if out.is_dir() else []:
        step = path.name.split("-")[1]
        if step.isdigit():
            whole = hashlib.sha256()
            for file in sorted(path.iterdir()):
                whole.update(file.name.encode() + file.read_bytes())
            found[int(step)] = whole.hexdigest()
    return found


def wait_for(out, process):
    while not checkpoints(out):
        assert process.poll() is None, f"ended early: {process.stdout.read()}"
        time.sleep(0.002)


def locks(work, straight, times, rng, took):
    """Two processes on one folder, in every order of start and resume."""
    orders = ["start+start", "start, start", "start, resume", "start+resume", "resume+resume", "resume, start", "resume, resume"]
    refused = 0
    for turn in range(times):
        order, out = orders[turn % len(orders)], work / f"locks-{turn}"
        first, second = order.replace("+", ", ").split(", ")
        if first == "resume":
            process = start(work, out)
            wait_for(out, process)
            process.send_signal(signal.SIGTERM)
            process.communicate()
        flags = [["--resume"] if word == "resume" else [] for word in (first, second)]
        a = start(work, out, *flags[0])
        if "+" not in order:
            while not (out / "run.lock").exists():
                time.sleep(0.001)
            time.sleep(rng.random() * took / 3)
        b = start(work, out, *flags[1])
        ends = [(process.communicate()[0], process.returncode) for process in (a, b)]
        codes = sorted(code for _, code in ends)
        assert codes == [0, 1], f"{order}: {ends}"
        text = next(text for text, code in ends if code == 1)
        in_use = "in use by process" in text
        # A fresh start beside a resume that came first finds the folder full only after that one has ended.
        assert in_use, f"{order}: {text}"
        refused += 1
        same(out, straight)
        shutil.rmtree(out)
    print(f"locks: {times} times two processes: one ran on with all its records, {refused} refused with the other's process")


def kills(work, straight, times, rng, took):
    """kill -9 at a random moment, sometimes twice; then on to the end."""
    lost = resumed = 0
    for turn in range(times):
        out = work / f"kills-{turn}"
        flags = []
        for _ in range(1 + turn % 3):
            process = start(work, out, *flags)
            time.sleep(rng.random() * took)
            process.kill()
            process.communicate()
            flags = ["--resume"] if out.exists() else []
        saved = checkpoints(out)
        said = finish(work, out, *flags)
        if saved:
            resumed += 1
            newest = max(saved)
            assert newest == STEPS or f"resumed after step {newest} of" in said, f"lost step {newest}: {said}"
        same(out, straight)
        shutil.rmtree(out)
    print(f"kills: {times} runs killed {sum(1 + turn % 3 for turn in range(times))} times, {resumed} went on from a checkpoint, {lost} lost one; all ended in the same bits")


def fill(path, left):
    """Takes all the room there is, but for so many bytes."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    room = os.fstatvfs(file)
    try:
        os.write(file, bytes(max(0, room.f_bavail * room.f_frsize - left)))
    except OSError:
        pass
    os.close(file)


def disk(work, straight, times, rng, took):
    """The disk fills at a random moment: others free it, or the run is stopped and what it says is done."""
    waited = ended = unharmed = 0
    place = work / "small"
    place.mkdir()
    size = 2 * sum(file.stat().st_size for file in (straight / f"checkpoint-{STEPS}").iterdir()) * 5
    while waited + ended < times:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
        try:
            out, ballast = place / "run", place / "ballast"
            process = start(work, out)
            wait_for(out, process)
            time.sleep(rng.random() * took * 0.6)
            fill(ballast, rng.randrange(20_000))
            lines = []
            while (line := process.stdout.readline()) and not line.startswith("disk full: waiting"):
                lines.append(line)
            if not line:
                process.wait()
                unharmed += process.returncode == 0
                if process.returncode:
                    assert "make room" in lines[-1], lines
                    ballast.unlink()
                    finish(work, out, "--resume")
            elif waited < ended:
                waited += 1
                saved = checkpoints(out)
                ballast.unlink()
                rest = process.communicate()[0]
                assert process.returncode == 0, rest
            else:
                ended += 1
                saved = checkpoints(out)
                process.send_signal(signal.SIGTERM)
                rest = process.communicate()[0]
                assert process.returncode == 1 and f"it begins after step {max(saved)}" in rest, rest
                assert checkpoints(out) == saved, "a checkpoint changed"
                assert not list(out.glob("*.part")), "half a checkpoint was left"
                ballast.unlink()
                said = finish(work, out, "--resume")
                assert f"resumed after step {max(saved)} of" in said, said
            same(out, straight)
        finally:
            process.kill()
            process.wait()
            subprocess.run(["umount", str(place)], check=True)
    print(f"disk: {times} disks full at a save: {waited} runs waited and went on, {ended} ended with a remedy that works, {unharmed} more had room enough; all ended in the same bits")


def namespaced():
    """Runs this again where mounting changes nothing outside."""
    if os.environ.get("STRESS_RUNS_INSIDE"):
        return True
    inside = dict(os.environ, STRESS_RUNS_INSIDE="1")
    for flags in (["-m"], ["-rm"]):
        probe = ["unshare", *flags, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
            sys.exit(subprocess.run(["unshare", *flags, sys.executable, *sys.argv], env=inside).returncode)
    print("disk: skipped, mounting is not permitted here")
    return False


def main():
    what = {"locks": locks, "kills": kills, "disk": disk}[sys.argv[1]]
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 30)
    if what is disk and not namespaced():
        return
    print(f"{sys.argv[1]}: {times} times, seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        setting(work)
        began = time.monotonic()
        finish(work, work / "straight")
        what(work, work / "straight", times, random.Random(seed), time.monotonic() - began)


main()
