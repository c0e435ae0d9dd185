//! Data files as people give them: pipes, empty shards, wrong names, files that unpack to gigabytes.

use std::{fs, io::Write, os::unix::net::UnixListener, process::Command, thread};

use super::scratch::Scratch;

/// What the command says on both streams, after it ended as it should; an error is one line.
fn said(scratch: &Scratch, args: &[&str], good: bool) -> String {
    let output = scratch.data(args);
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(output.status.code(), Some(i32::from(!good)), "{out}{err}");
    assert!(good || err.lines().count() == 1 && err.starts_with("error: "), "{err}");
    out + &err
}

#[test]
fn a_pipe_is_read_and_not_cached() {
    let scratch = Scratch::new();
    let rows = fs::read(scratch.path("train.jsonl")).unwrap();
    let pipe = scratch.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["--set", "data.train=pipe", "--set", "cache.dir=cache"];
    for rows in [rows.clone(), zstd::encode_all(&rows[..], 1).unwrap()] {
        let feed = thread::spawn({
            let pipe = pipe.clone();
            move || fs::write(pipe, rows)
        });
        let text = said(&scratch, &args, true);
        feed.join().unwrap().unwrap();
        assert!(
            text.contains("train: 4 rows, 0 left out") && text.contains("pipe is a pipe: its tokens are not kept"),
            "{text}"
        );
    }
    let feed = thread::spawn(move || fs::write(pipe, b"PAR1 and more"));
    let text = said(&scratch, &args, false);
    feed.join().unwrap().unwrap();
    assert!(text.contains("is Parquet in a pipe"), "{text}");
}

#[test]
fn a_file_without_rows_among_others_is_a_warning() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("p")).unwrap();
    fs::copy(scratch.path("train.jsonl"), scratch.path("p/a.jsonl")).unwrap();
    for (name, bytes) in [("b.jsonl", ""), ("c.jsonl", " \n\n"), ("d.json", "[ ]"), ("e.jsonl.gz", "")] {
        scratch.write(&format!("p/{name}"), bytes);
    }
    for _ in 0..2 {
        let text = said(&scratch, &["--set", "data.train=p/*", "--set", "cache.dir=cache"], true);
        assert!(text.contains("train: 4 rows, 0 left out"), "{text}");
        assert_eq!(text.matches(" has no row\n").count(), 4, "{text}");
    }
    scratch.remove("p/a.jsonl");
    let text = said(&scratch, &["--set", "data.train=p/*"], false);
    assert!(text.contains("`data.train`, 4 files: no usable row among 0"), "{text}");
}

/// What a file's name says is looked at whether or not its bytes are in the cache.
#[test]
fn a_name_that_lies_is_refused_on_a_warm_cache_too() {
    let scratch = Scratch::new();
    let rows = fs::read_to_string(scratch.path("train.jsonl")).unwrap();
    let array = format!("[{}]", rows.trim_end().replace('\n', ","));
    for name in ["x.txt", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"] {
        scratch.write(name, &rows);
    }
    scratch.write("a.json", &array);
    scratch.write("a.jsonl", &array);
    let names = ["x.txt", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "a.jsonl"];
    let refusals = || {
        names.map(|name| said(&scratch, &["--set", &format!("data.train={name}"), "--set", "cache.dir=cache"], false))
    };
    let cold = refusals();
    for good in ["train.jsonl", "a.json"] {
        said(&scratch, &["--set", &format!("data.train={good}"), "--set", "cache.dir=cache"], true);
    }
    assert_eq!(refusals(), cold);
}

#[test]
fn another_micro_batch_tokenises_nothing_again() {
    let scratch = Scratch::new();
    let with =
        |tokens: usize| ["--set".into(), format!("batch.tokens={tokens}"), "--set".into(), "cache.dir=cache".into()];
    let run = |tokens, good| said(&scratch, &with(tokens).each_ref().map(String::as_str), good);
    assert!(run(256, true).contains("train.jsonl tokenised"));
    assert!(run(512, true).contains("train.jsonl read from the cache"));
    let why = run(30, false);
    assert!(why.contains("train.jsonl:1: the tree of prompt and both responses has"), "{why}");
    assert!(why.contains("`batch.tokens` = 30: shorten it or raise batch.tokens (3 of 4 rows are bad;"), "{why}");
}

#[test]
fn special_files_are_refused() {
    let scratch = Scratch::new();
    let _socket = UnixListener::bind(scratch.path("socket")).unwrap();
    fs::create_dir(scratch.path("folder")).unwrap();
    for (name, what) in [
        ("/dev/zero", "is a device"),
        ("/dev/full", "is a device"),
        ("/dev/null", "is a device"),
        ("socket", "is a socket"),
        ("folder", "it is a folder"),
    ] {
        let text = said(&scratch, &["--set", &format!("data.train={name}")], false);
        assert!(text.contains(what), "{text}");
    }
}

/// Columns of a table that was damaged in every place: a refusal in one line or other rows, never a panic's text.
#[test]
fn a_damaged_table_says_one_line() {
    let scratch = Scratch::new();
    let whole = fs::read(crate::support::root().join("tests/fixtures/parquet/plain.snappy.parquet")).unwrap();
    for at in (4..whole.len()).step_by(whole.len() / 24) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        scratch.write("bad.parquet", bytes);
        let output = scratch.data(&["--set", "data.train=bad.parquet", "--show", "0"]);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!err.contains("panicked") && err.lines().count() <= 1, "{at}: {err}");
    }
}

/// Kilobytes that unpack to gigabytes, as one line, as blanks, as many rows too long: said after the first of them.
#[test]
fn bombs_end_soon() {
    let scratch = Scratch::new();
    let piece = vec![b'a'; 1 << 24];
    let frame = zstd::encode_all(&piece[..], 1).unwrap();
    let line = zstd::encode_all(&[&piece[..], &piece[..], b"\n"].concat()[..], 1).unwrap();
    let blanks = zstd::encode_all(&vec![b' '; 1 << 24][..], 1).unwrap();
    for (name, frame, times) in [("line", frame, 400), ("rows", line, 200), ("blanks", blanks, 400)] {
        let mut file = fs::File::create(scratch.path("bomb.jsonl.zst")).unwrap();
        (0..times).for_each(|_| file.write_all(&frame).unwrap());
        for policy in ["stop", "skip"] {
            let on_error = format!("data.on_error={policy}");
            let text = said(&scratch, &["--set", "data.train=bomb.jsonl.zst", "--set", &on_error], false);
            assert!(text.contains("is read no further") || text.contains("blank bytes in one piece"), "{name}: {text}");
        }
    }
}

#[test]
fn documents_are_cut_and_counted() {
    let scratch = Scratch::new();
    let rows = [r#"{"text": "One, two, three, four, five, six, seven, eight."}"#, r#"{"text": "Nine."}"#];
    scratch.write("train.jsonl", rows.join("\n"));
    scratch.write("eval.jsonl", rows[1]);
    let args =
        ["--set", "loss.name=sft", "--set", "data.max_response_tokens=5", "--show", "9", "--set", "cache.dir=cache"];
    assert!(said(&scratch, &args, false).contains("`data.max_response_tokens` = 5"));
    let args = [&args[..], &["--set", "data.long_text=split"]].concat();
    for _ in 0..2 {
        let text = said(&scratch, &args, true);
        assert!(text.contains("train: 2 rows, 0 left out\n  long documents: 1 cut into "), "{text}");
        assert!(text.contains("train.jsonl:1, block 2 of "), "{text}");
    }
}

#[test]
fn a_conversation_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let scratch = Scratch::new();
    let template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}";
    scratch.write(
        "model/chat_template.jinja",
        format!("{template}{{% if add_generation_prompt %}}<assistant>{{% endif %}}"),
    );
    let long = "word ".repeat(80_000);
    let said_by = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    for (question, answer, part, key) in
        [(&long[..], "yes", "prompt", "max_prompt_tokens"), ("Q", &long[..], "chosen", "max_response_tokens")]
    {
        let row = serde_json::json!({
            "prompt": [said_by("user", question)],
            "chosen": [said_by("assistant", answer)],
            "rejected": [said_by("assistant", "no")],
        });
        scratch.write("train.jsonl", row.to_string());
        let text = said(&scratch, &[], false);
        assert!(text.contains(&format!("`{part}` has at least ")) && text.contains(key), "{text}");
    }
}
