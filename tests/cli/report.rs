//! `warpo report`: runs that are over, live or none.

use std::{
    fmt::Write,
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// Folders of runs, made up.
struct Runs(TempDir);

impl Runs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A run of so many steps with an evaluation at its start and every ten.
    fn add(&self, name: &str, beta: f64, steps: u64) {
        self.write(name, "config.toml", &format!("[loss]\nname = \"dpo\"\nbeta = {beta}\n\n[train]\nseed = 1\n"));
        self.write(name, "metrics.jsonl", &metrics(beta, steps));
    }

    fn write(&self, name: &str, file: &str, text: &str) {
        fs::create_dir_all(self.path().join(name)).unwrap();
        fs::write(self.path().join(name).join(file), text).unwrap();
    }

    fn report(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
        command.arg("report").args(args).current_dir(self.path()).output().unwrap()
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.report(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.report(args);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Records as a run of DPO writes them; the loss is `beta` over the step.
fn metrics(beta: f64, steps: u64) -> String {
    let mut text = String::new();
    let held_out = |step: u64, loss: f64| {
        let epoch = step as f64 / steps as f64;
        format!("{{\"step\":{step},\"epoch\":{epoch},\"eval_loss\":{loss},\"eval_rewards/margins\":{step}}}\n")
    };
    text += &held_out(0, 9.0);
    for step in 1..=steps {
        let (share, accuracy) = (step as f64 / steps as f64, f64::from(u8::from(step.is_multiple_of(3))));
        writeln!(
            text,
            "{{\"step\":{step},\"epoch\":{share},\"loss\":{},\"rewards/chosen\":{share},\"rewards/rejected\":-{share},\
             \"rewards/margins\":{},\"rewards/accuracies\":{accuracy},\"logps/chosen\":-20.5,\"logps/rejected\":-{},\
             \"grad_norm\":{},\"learning_rate\":{},\"num_tokens\":{},\"skipped_steps\":0,\"tokens_per_second\":2000.0,\
             \"speed_of_light\":0.25,\"step_ms\":500.0,\"memory_bytes\":3221225472}}",
            beta / step as f64,
            2.0 * share,
            20.0 + share,
            1.0 + 1.0 / step as f64,
            1e-5 * share,
            1000 * step,
        )
        .unwrap();
        if step.is_multiple_of(10) {
            text += &held_out(step, beta / step as f64 + (step as f64 - 20.0).abs());
        }
    }
    text
}

#[test]
fn a_summary_has_last_and_best_values_and_what_differs() {
    let runs = Runs::new();
    runs.add("a", 0.5, 30);
    runs.add("b", 0.25, 20);
    fs::create_dir(runs.path().join("a/final")).unwrap();
    let text = runs.text(&["a", "b"]);
    for line in [
        "a: finished after 30 steps, 1 epochs",
        "  15s of steps, 2000 tokens/s, 30k tokens, memory 3.00 GiB, speed of light 25.0 %",
        "  loss                 0.01667  0.01667    30     10.02  0.02500    20",
        "  rewards/margins        2.000    2.000    30     30.00    30.00    30",
        "  logps/chosen          -20.50",
        "b: at step 20, 1 epochs; no final model yet",
        "  differs      a     b",
        "  loss.beta  0.5  0.25",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("train.seed") && !text.contains("step_ms"), "{text}");
    assert!(!runs.text(&["a"]).contains("differs"));
}

#[test]
fn a_live_run_is_reported_up_to_its_last_whole_record() {
    let runs = Runs::new();
    let text = metrics(0.5, 20);
    runs.add("live", 0.5, 20);
    runs.write("live", "metrics.jsonl", &format!("{text}{{\"step\":21,\"lo"));
    let whole = runs.text(&["live"]);
    assert!(whole.contains("live: at step 20") && !whole.contains("no records"), "{whole}");
    // A line that is broken in the middle is said.
    runs.write("live", "metrics.jsonl", &text.replacen("{\"step\":7,", "\u{0}\u{0}{", 1));
    let text = runs.text(&["live"]);
    assert!(text.contains("  left out, for they are no records: 1 of the lines of metrics.jsonl\n"), "{text}");
}

#[test]
fn what_is_no_run_is_one_line() {
    let runs = Runs::new();
    fs::create_dir(runs.path().join("empty")).unwrap();
    runs.write("begun", "config.toml", "");
    runs.write("torn", "config.toml", "[loss\n");
    runs.write("torn", "metrics.jsonl", &metrics(0.5, 1));
    for (run, why) in [
        ("empty", "empty: holds no run: config.toml is missing: name what `warpo train` wrote to"),
        ("nowhere", "nowhere: no such folder: name the folder of a run, such as runs/quickstart"),
        ("begun", "begun: nothing to report yet: the run in it has not begun its first step"),
        ("torn", "torn/config.toml: TOML parse error at line 1"),
    ] {
        let line = runs.refused(&[run]);
        assert!(line.starts_with(&format!("error: {why}")) && line.lines().count() == 1, "{line}");
    }
}

/// The text between two places.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} behind {from}")).0
}

#[test]
fn a_page_shows_every_metric_of_two_runs_and_asks_nobody_for_anything() {
    let runs = Runs::new();
    runs.add("a", 0.5, 30);
    runs.add("b<i>&", 0.25, 20);
    let pair = |n: u64| {
        let (row, margin) = (format!("/data/eval.jsonl:{n}"), 12.0 - n as f64);
        format!(
            "{{\"row\":\"{row}\",\"margin\":{margin},\"prompt\":\"\\n\\nIs it <b>?\\n\\nSay:\",\"chosen\":\"Yes\",\"rejected\":\"No\"}}\n"
        )
    };
    runs.write("a", "held_out.jsonl", &(1..=12).map(pair).collect::<String>());
    let said = runs.text(&["a", "b<i>&", "--out", "report.html"]);
    assert!(said.ends_with("\nthe page is report.html\n"), "{said}");
    let page = fs::read_to_string(runs.path().join("report.html")).unwrap();
    for part in ["http", "src=", "href", "@import", "url(", "<script", "<link", "b<i>"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.starts_with("<!doctype html>\n") && page.contains("prefers-color-scheme: dark"));
    let panels = [
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards: chosen, rejected",
        "log-probabilities: chosen, rejected",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "speed_of_light, % of the device's peak",
        "memory, GiB",
    ];
    for panel in panels {
        let figure = between(&page, &format!("aria-label=\"{panel}\""), "</svg>");
        for colour in ["#0066AA", "#D55E00"] {
            let lines = figure.matches(&format!("stroke=\"{colour}\"")).count();
            let held_out = ["loss", "rewards/margins"].contains(&panel);
            let want = if panel.contains(", rejected") || held_out { 2 } else { 1 };
            assert_eq!(lines, want, "{panel}");
            // Evaluations are dots: four of one run, three of the other.
            assert_eq!(figure.matches("<circle").count(), if held_out { 7 } else { 0 }, "{panel}");
        }
    }
    assert!(page.contains("Not in the records of these runs: entropy, mean_token_accuracy."));
    assert!(between(&page, "<th>loss.beta</th>", "</tr>").contains("<td>0.5</td><td>0.25</td>"));
    let values = between(&page, "<tr><th>rewards/margins</th>", "</tr>");
    assert!(
        values.starts_with("<td class=\"first\">2.000</td><td>30.00</td><td>30.00 <small>at 30</small></td>"),
        "{values}"
    );
    let pairs = between(&page, "<h2>Held-out pairs of a</h2>", "<h2>");
    assert_eq!(pairs.matches("<td class=\"row\">").count(), 10);
    for row in [
        "eval.jsonl:1</td><td>11.00",
        "eval.jsonl:5</td><td>7.000",
        "eval.jsonl:8</td><td>4.000",
        "eval.jsonl:12</td><td>0<",
    ] {
        assert!(pairs.contains(row), "{row}: {pairs}");
    }
    assert!(
        pairs.contains("<td class=\"text\">Is it &lt;b&gt;?\nSay:</td>")
            && !pairs.contains("/data")
            && !page.contains("Held-out pairs of b")
    );
    assert!(page.contains("b&lt;i&gt;&amp;: config.toml") && page.contains("name = &quot;dpo&quot;"));
}

#[test]
fn a_report_replaces_a_report_and_nothing_else() {
    let runs = Runs::new();
    runs.add("a", 0.5, 10);
    for _ in 0..2 {
        runs.text(&["a", "--out", "report.html", "--svg", "figures", "--png", "figures"]);
    }
    let notes = "<!doctype html><p>notes";
    for (file, args) in [
        ("notes.html", ["--out", "notes.html"]),
        ("figures/loss.svg", ["--svg", "figures"]),
        ("figures/loss.png", ["--png", "figures"]),
    ] {
        fs::write(runs.path().join(file), notes).unwrap();
        let line = runs.refused(&["a", args[0], args[1]]);
        assert_eq!(
            line,
            format!("error: {file}: is there already and no report of warpo: move it away or name another\n")
        );
        assert_eq!(fs::read_to_string(runs.path().join(file)).unwrap(), notes);
    }
    let many: Vec<String> = (0..9).map(|n| format!("run{n}")).collect();
    many.iter().for_each(|name| runs.add(name, 0.5, 2));
    let args: Vec<&str> = many.iter().map(String::as_str).chain(["--out", "many.html"]).collect();
    assert_eq!(runs.refused(&args), "error: 9 runs: figures have colours for 8: name 8 runs or fewer\n");
}

/// No font of the machine is asked for: the letters are those that came along.
#[test]
fn figures_stand_alone_as_files() {
    let runs = Runs::new();
    runs.add("a", 0.5, 10);
    let said = runs.text(&["a", "--svg", "made/svg", "--png", "png"]);
    assert!(said.contains("10 figures are in made/svg\n10 figures are in png\n"), "{said}");
    let svg = fs::read_to_string(runs.path().join("made/svg/rewards.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for part in ["rewards: chosen, rejected", ">\na\n<", "stroke-dasharray"] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
    let png = fs::read(runs.path().join("png/rewards.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.windows(13).any(|bytes| bytes == b"Software\0warp"));
    let width = u32::from_be_bytes(png[16..20].try_into().unwrap());
    assert_eq!(width, 960);
}

/// 100,000 steps take five times as long and no more room; the figures of that are in docs/checks.md.
#[test]
fn a_long_run_is_a_small_page() {
    let runs = Runs::new();
    runs.add("long", 0.5, 20_000);
    let started = std::time::Instant::now();
    runs.text(&["long", "--out", "report.html"]);
    let (bytes, time) = (fs::metadata(runs.path().join("report.html")).unwrap().len(), started.elapsed());
    assert!(bytes < 400_000 && time.as_secs() < 5, "{bytes} bytes in {time:?}");
    let page = fs::read_to_string(runs.path().join("report.html")).unwrap();
    assert!(page.contains("drawn in 400 columns at most"));
    // The accuracy is 0 or 1: its band has both in every column.
    let figure = between(&page, "aria-label=\"rewards/accuracies\"", "</svg>");
    let band = between(figure, "<polygon", "/>");
    assert_eq!(between(band, "points=\"", "\"").split_whitespace().count(), 2 * 400);
}
