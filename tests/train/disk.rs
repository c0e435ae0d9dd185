//! A disk that fills up while a run saves, where a small one may be mounted.

use std::{fs, path::Path, process::Command};

use super::fixture::{Fixture, stderr};

/// Bytes of the small disk, and what it has beside what the run is reckoned to need.
const DISK: u64 = 16 << 20;
const SLACK: u64 = 128 << 10;

/// `$1` is where to mount, `$2` the bytes to take away, `$3` a finished run; the rest is the run. The ballast goes when the run
/// has said that it waits.
const SCRIPT: &str = r#"
place=$1 ballast=$2 straight=$3
shift 3
mount -t tmpfs -o size=16m tmpfs "$place" || exit 77
head -c "$ballast" /dev/zero >"$place/ballast"
"$@" >"$place.log" 2>&1 &
while ! grep -q "disk full: waiting" "$place.log"; do
    kill -0 $! || exit 2
    sleep 0.05
done
ls -d "$place"/run/checkpoint-2 || exit 3
rm "$place/ballast"
wait $! || exit 4
cmp "$place/run/final/model.safetensors" "$straight/final/model.safetensors" || exit 5
[ "$(wc -l <"$place/run/metrics.jsonl")" = "$(wc -l <"$straight/metrics.jsonl")" ] || exit 6
"#;

fn bytes(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// All checkpoints are to be kept, and the second has no room.
#[test]
fn a_run_on_a_full_disk_waits_for_room_and_goes_on() {
    let fixture = Fixture::new();
    assert!(fixture.execute("straight", &[]).status.success());
    let straight = fixture.path("straight");
    let (one, last) = (bytes(&straight.join("checkpoint-8")), bytes(&straight.join("final")));
    assert!(last + SLACK < one, "{one} {last}");
    let place = fixture.path("small");
    fs::create_dir(&place).unwrap();
    let run = fixture.command("small/run", &[]);
    for flags in ["-m", "-rm"] {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", SCRIPT, "sh"]).arg(&place).arg((DISK - one - last - SLACK).to_string());
        command.arg(&straight).arg(run.get_program()).args(run.get_args());
        let Ok(output) = command.output() else { break };
        match output.status.code() {
            Some(0) => return,
            // A namespace or a mount is not permitted.
            Some(1 | 77) => {}
            code => {
                let said = fs::read_to_string(fixture.path("small.log")).unwrap_or_default();
                panic!("{code:?}: {} {said}", stderr(&output));
            }
        }
    }
    println!("skipped: mounting is not permitted here");
}
