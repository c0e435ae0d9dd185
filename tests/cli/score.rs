//! `warpo score`: one line a row, and nothing else.

use std::fs;

use serde_json::{Map, Value};

use super::scratch::Scratch;

fn lines(scratch: &Scratch, args: &[&str]) -> Vec<Map<String, Value>> {
    let output = scratch.score(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(scratch.path("scores.jsonl")).unwrap();
    fs::remove_file(scratch.path("scores.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(line: &Map<String, Value>) -> Vec<&str> {
    line.keys().map(String::as_str).collect()
}

fn refused(scratch: &Scratch, args: &[&str]) -> String {
    let before = scratch.files();
    let output = scratch.score(args);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(scratch.files() == before, "a refused command wrote something");
    String::from_utf8(output.stderr).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn pairs_have_a_line_each_in_the_order_of_the_file() {
    let scratch = Scratch::new();
    let scores = lines(&scratch, &[]);
    assert_eq!(scores.len(), 4);
    for (i, line) in scores.iter().enumerate() {
        assert_eq!(keys(line), ["row", "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"]);
        assert_eq!(line["row"], format!("train.jsonl:{}", i + 1));
        assert!(line["chosen_logps"].as_f64().unwrap() < 0.0 && line["chosen_tokens"].as_u64().unwrap() > 0);
    }
    // A budget that lets no two rows into a pack changes rounding only.
    for (line, alone) in scores.iter().zip(lines(&scratch, &["--tokens", "40"])) {
        let (sum, same) = (line["chosen_logps"].as_f64().unwrap(), alone["chosen_logps"].as_f64().unwrap());
        assert!((sum - same).abs() < 1e-5 * sum.abs(), "{sum} and {same}");
    }
}

#[test]
fn token_log_probabilities_sum_to_the_response() {
    let scratch = Scratch::new();
    for line in lines(&scratch, &["--per-token"]) {
        for side in ["chosen", "rejected"] {
            let tokens = numbers(&line[&format!("{side}_token_logps")]);
            assert_eq!(tokens.len() as u64, line[&format!("{side}_tokens")].as_u64().unwrap());
            // They are f32, written with as many digits as that takes.
            let sum: f64 = tokens.iter().map(|&logp| f64::from(logp as f32)).sum();
            // The parser of this test may be off by the last bit of an f64.
            assert!((sum / line[&format!("{side}_logps")].as_f64().unwrap() - 1.0).abs() < 1e-15, "{sum} {line:?}");
        }
    }
}

#[test]
fn lists_completions_and_texts_have_arrays() {
    let scratch = Scratch::new();
    let pair = lines(&scratch, &["--tokens", "40"]).remove(0);
    let text = fs::read_to_string(scratch.path("train.jsonl")).unwrap();
    let row: Map<String, Value> = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let (prompt, chosen, rejected) = (&row["prompt"], &row["chosen"], &row["rejected"]);
    let forms = [
        format!(r#"{{"prompt": {prompt}, "responses": [{rejected}, {chosen}, " Yes"], "scores": [1, 3, 2]}}"#),
        format!(r#"{{"prompt": {prompt}, "completion": {chosen}, "label": true}}"#),
        format!(r#"{{"prompt": {prompt}, "completion": {chosen}}}"#),
        r#"{"text": "Two words and some more"}"#.to_owned(),
    ];
    let mut found = Vec::new();
    for (i, form) in forms.iter().enumerate() {
        scratch.write("train.jsonl", form);
        let line = lines(&scratch, &["--per-token"]).remove(0);
        assert_eq!(keys(&line), ["row", "logps", "tokens", "token_logps"], "form {i}");
        assert_eq!(numbers(&line["logps"]).len(), numbers(&line["tokens"]).len(), "form {i}");
        found.push(numbers(&line["logps"]));
    }
    let of = |name: &str| pair[name].as_f64().unwrap();
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-5 * want.abs(), "{got} and {want}");
    assert_eq!(found[0].len(), 3);
    near(found[0][0], of("rejected_logps"));
    near(found[0][1], of("chosen_logps"));
    near(found[1][0], of("chosen_logps"));
    near(found[2][0], of("chosen_logps"));
}

#[test]
fn a_file_that_exists_is_not_overwritten() {
    let scratch = Scratch::new();
    scratch.write("scores.jsonl", "precious");
    let why = refused(&scratch, &[]);
    assert_eq!(why, "error: scores.jsonl exists: name another file by --out, or remove it\n");
}

#[test]
fn what_cannot_be_scored_is_refused_in_one_line() {
    let scratch = Scratch::new();
    let why = refused(&scratch, &["--set", "data.max_response_tokens=1"]);
    assert!(why.contains("train.jsonl:1") && why.lines().count() == 1, "{why}");
    let why = refused(&scratch, &["--set", "data.nonsense=1"]);
    assert!(why.contains("unknown key `data.nonsense`") && why.lines().count() == 1, "{why}");
    scratch.second_row("{}");
    let why = refused(&scratch, &[]);
    assert!(why.contains("train.jsonl:2") && why.lines().count() == 1, "{why}");
    scratch.remove("model/model.safetensors");
    scratch.second_row(r#"{"prompt": "a", "chosen": " b", "rejected": " c"}"#);
    let why = refused(&scratch, &[]);
    assert!(why.contains("model.safetensors") && why.lines().count() == 1, "{why}");
}

/// Keys of a run that scoring does not read, and names of outputs that cannot be.
#[test]
fn what_has_no_effect_or_no_place_is_refused_before_anything_is_computed() {
    let scratch = Scratch::new();
    for key in ["optim.lr=1", "data.eval=eval.jsonl", "train.seed=1", "batch.pairs=2", "model.init=random"] {
        let why = refused(&scratch, &["--set", key]);
        let name = key.split('=').next().unwrap();
        assert!(why.contains(&format!("`{name}` has no effect on `warpo score`")), "{why}");
    }
    let out = |name: &str| {
        let output = scratch.score_to(name, &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{name}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(out("model").contains("model is a folder"));
    assert!(out("nowhere/x.jsonl").contains("the folder nowhere does not exist"));
    #[cfg(target_os = "linux")]
    for name in ["/proc/scores.jsonl", "/sys/scores.jsonl"] {
        assert!(out(name).contains(&format!("{name}: cannot be written")), "{}", out(name));
    }
}

#[cfg(unix)]
#[test]
fn scores_go_to_standard_output_and_to_pipes() {
    let scratch = Scratch::new();
    let output = scratch.score(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let want = fs::read(scratch.path("scores.jsonl")).unwrap();
    for name in ["-", "/dev/stdout"] {
        let output = scratch.score_to(name, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, want, "{name}: standard output has the lines and nothing else");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("4 rows, "),
            "what people read goes to standard error"
        );
    }
    assert!(!scratch.path("-").exists());
    let pipe = scratch.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    assert!(scratch.score_to("pipe", &[]).status.success());
    assert_eq!(reader.join().unwrap(), want);
}

#[cfg(target_os = "linux")]
#[test]
fn scores_that_nothing_takes_are_an_error() {
    let scratch = Scratch::new();
    let output = scratch.score_to("/dev/full", &[]);
    assert_eq!(output.status.code(), Some(1));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.starts_with("error: /dev/full: cannot be written: "), "{why}");
    assert!(scratch.score_to("/dev/null", &[]).status.success());
}

/// Rows are as long as the model reads, whatever `warpo train` allows unasked and however many tokens a micro-batch has.
#[test]
fn the_model_is_the_only_limit_of_a_row() {
    let scratch = Scratch::new();
    let row = |prompt: usize, response: usize| {
        let text = |words: usize, word: &str| format!("{word} ").repeat(words);
        serde_json::json!({"prompt": text(prompt, "a"), "chosen": text(response, "b"), "rejected": text(response, "c")})
    };
    scratch.write("train.jsonl", row(300, 1).to_string());
    let why = refused(&scratch, &[]);
    assert!(why.contains("train.jsonl:1: ") && why.contains("the model has 256 positions"), "{why}");
    scratch.replace("model/config.json", "256", "4000");
    scratch.write("train.jsonl", row(600, 2000).to_string());
    let line = lines(&scratch, &[]).remove(0);
    let tokens = |side: &str| line[&format!("{side}_tokens")].as_u64().unwrap();
    assert!(tokens("chosen") > 512 && tokens("chosen") + tokens("rejected") > 4000, "{line:?}");
    // What is asked for counts.
    assert!(refused(&scratch, &["--tokens", "4000"]).contains("4000"), "{}", refused(&scratch, &["--tokens", "4000"]));
    assert!(refused(&scratch, &["--set", "data.max_prompt_tokens=512"]).contains("`data.max_prompt_tokens` = 512"));
}

#[test]
fn the_last_line_says_what_the_rows_come_to() {
    let scratch = Scratch::new();
    let last = |args: &[&str]| {
        let output = scratch.score(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    };
    let line = last(&[]);
    scratch.remove("scores.jsonl");
    let scores = lines(&scratch, &[]);
    let of = |row: &Map<String, Value>, name: &str| row[name].as_f64().unwrap();
    let margins: Vec<f64> = scores.iter().map(|row| of(row, "chosen_logps") - of(row, "rejected_logps")).collect();
    let sum = |name: &str| scores.iter().map(|row| of(row, name)).sum::<f64>();
    let perplexity = |side: &str| (-sum(&format!("{side}_logps")) / sum(&format!("{side}_tokens"))).exp();
    let want = format!(
        "accuracy {:.3} (chosen more likely than rejected)  mean margin {:+.4} nats  perplexity {:.3} chosen, {:.3} rejected",
        margins.iter().filter(|&&margin| margin > 0.0).count() as f64 / 4.0,
        margins.iter().sum::<f64>() / 4.0,
        perplexity("chosen"),
        perplexity("rejected")
    );
    assert_eq!(line, want);
    scratch.write("train.jsonl", r#"{"text": "Two words and some more"}"#);
    assert!(last(&["--quiet"]).starts_with("perplexity "));
}
