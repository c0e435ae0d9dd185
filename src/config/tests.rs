use std::fs;

use super::*;

const SMALL: &str = "[model]\npath = \"model\"\n\n[data]\ntrain = \"train.jsonl\"\n";

fn load(text: &str, overrides: &[&str]) -> Result<Config> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("run.toml");
    fs::write(&file, text)?;
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Ok(Config::load(&file, &overrides)?)
}

/// The error of a file and overrides, checked to be one line, the temporary folder cut off.
fn refusal(text: &str, overrides: &[&str]) -> String {
    let message = format!("{:#}", load(text, overrides).expect_err("the configuration is refused"));
    assert!(!message.contains('\n'), "{message}");
    match message.find("run.toml") {
        Some(at) if message.starts_with('/') => message[at..].to_owned(),
        _ => message,
    }
}

#[test]
fn defaults_and_file_values() {
    let config = load(&format!("{SMALL}\n[optim]\nlr = 1\nschedule = \"cosine\"\n"), &[]).unwrap();
    assert_eq!(config.optim, OptimSection { lr: 1.0, schedule: Schedule::Cosine, ..OptimSection::default() });
    assert_eq!(config.loss.0[0]["beta"].as_float(), Some(0.1), "defaults are written out: {:?}", config.loss);
    assert_eq!(config.loss.read().unwrap().names(), "dpo");
    assert_eq!(config.train.precision, Precision::Auto);
    assert!(config.model.path.is_absolute() && config.model.path.ends_with("model"));
}

#[test]
fn overrides_in_order_with_toml_values_and_bare_strings() {
    let overrides = ["optim.lr=1e-3", "optim.lr = 2e-3", "model.init=random", "data.eval=\"e.jsonl\"", "train.steps=7"];
    let config = load(SMALL, &overrides).unwrap();
    assert_eq!(config.optim.lr, 2e-3);
    assert_eq!(config.model.init, Init::Random);
    assert_eq!(config.train.steps, Some(7));
    // Typed by hand, so relative to where it was typed.
    assert_eq!(config.data.eval, Some(std::env::current_dir().unwrap().join("e.jsonl").into()));
}

#[test]
fn an_override_without_a_value_unsets() {
    let text = format!("{SMALL}eval = \"e.jsonl\"\ntemplate = \"t.jinja\"\n[train]\nsteps = 3\n[loss]\nbeta = 0.3\n");
    assert!(load(&text, &[]).unwrap().data.eval.is_some());
    let config = load(&text, &["data.eval=", "data.template =", "train.steps=", "loss.beta=", "batch.packs="]).unwrap();
    let expected = load(SMALL, &[]).unwrap();
    assert_eq!((&config.data.eval, &config.data.template), (&None, &None));
    assert_eq!((&config.train, &config.loss, &config.batch), (&expected.train, &expected.loss, &expected.batch));
    // What has a default is given another value, and names stay checked.
    for (set, part) in [
        ("optim.lr=", "`optim.lr` = : invalid type"),
        ("data.train=", "`data.train` is not set"),
        ("model.path=", "`model.path` is not set"),
        ("data.evil=", "unknown key `data.evil`"),
        ("loss.betta=", "`loss.betta` is not set"),
        ("eval=", "unknown key `eval`"),
    ] {
        let why = refusal(&text, &[set]);
        assert!(why.contains(part), "{set}: {why}");
    }
    assert_eq!(load(SMALL, &["cache.dir="]).unwrap().cache.folder(), None);
}

#[test]
fn an_override_names_a_place_in_a_list() {
    let two = format!("{SMALL}[[loss]]\nname = \"dpo\"\n[[loss]]\nname = \"sft\"\nweight = 0.5\n");
    let of = |config: &Config, at: usize, key: &str| config.loss.0[at][key].as_float();
    let config = load(&two, &["loss.0.beta=3.0", "loss.1.weight=0.25"]).unwrap();
    assert_eq!((of(&config, 0, "beta"), of(&config, 1, "weight")), (Some(3.0), Some(0.25)));
    let one = format!("{SMALL}[[loss]]\nname = \"dpo\"\n");
    for set in ["loss.beta=3.0", "loss.0.beta=3.0"] {
        assert_eq!(of(&load(&one, &[set]).unwrap(), 0, "beta"), Some(3.0), "{set}");
    }
    for (set, part) in [
        ("loss.beta=3.0", "`loss` is a list of 2: name the one that is meant, such as `loss.0.beta`"),
        ("loss.2.beta=3.0", "`loss.2`: `loss` is a list of 2, counted from 0"),
        ("model.path.x=1", "`path` is a value, not a section"),
    ] {
        let why = refusal(&two, &[set]);
        assert!(why.starts_with(&format!("--set {set}: ")) && why.contains(part), "{set}: {why}");
    }
}

#[test]
fn the_resolved_file_gives_the_same_configuration() {
    let config = load(SMALL, &["train.steps=3", "data.eval=e.jsonl", "optim.lr=0.1"]).unwrap();
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let config = load(SMALL, &[]).unwrap();
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn data_files_alone_in_lists_and_with_weights() {
    let of = |value: &str| load(&SMALL.replace("\"train.jsonl\"", value), &[]).unwrap();
    let names = |config: &Config| -> Vec<(String, f32)> {
        let name = |source: &WeightedFile| source.path.file_name().unwrap().to_str().unwrap().to_owned();
        config.data.train.0.iter().map(|source| (name(source), source.weight)).collect()
    };
    let config = of(r#"["a.jsonl", "b-*.parquet"]"#);
    assert_eq!(names(&config), [("a.jsonl".into(), 1.0), ("b-*.parquet".into(), 1.0)]);
    assert!(config.data.train.0.iter().all(|source| source.path.is_absolute()));
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let config = of(r#"["a.jsonl", { path = "b.jsonl", weight = 2.5 }, { path = "c.jsonl" }]"#);
    assert_eq!(names(&config), [("a.jsonl".into(), 1.0), ("b.jsonl".into(), 2.5), ("c.jsonl".into(), 1.0)]);
    assert!(config.data.train.0.iter().all(|source| source.path.is_absolute()));
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let config = load(SMALL, &[r#"data.eval=["x.jsonl", "y.jsonl"]"#]).unwrap();
    assert_eq!(config.data.eval.unwrap().0[1].path, std::env::current_dir().unwrap().join("y.jsonl"));
}

#[test]
fn data_files_that_make_no_sense() {
    let of = |value: &str| refusal(&SMALL.replace("\"train.jsonl\"", value), &[]);
    assert_eq!(of("[]"), "run.toml:5: `data.train` is not set: name a file of rows");
    for (value, part) in [
        (r#"[{ path = "a", weight = 0 }]"#, "`data.train` = 0: must be a weight above 0 and at most 1000"),
        (r#"[{ path = "a", weight = nan }]"#, "must be a weight above 0"),
        (r#"[{ path = "a", wieght = 2.0 }]"#, "unknown key `data.train.wieght`"),
        (r#"[{ weight = 2.0 }]"#, "missing field `path`"),
        ("[1]", "a path or a table with `path`, `weight`, `fraction` and `columns`"),
        ("1", "a path or a list of paths"),
        (r#"["a", ""]"#, "`data.train` is not set"),
    ] {
        let why = of(value);
        assert!(why.starts_with("run.toml:5: ") && why.contains(part), "{value}: {why}");
    }
    let why = refusal(&format!("{SMALL}eval = [{{ path = \"e\", weight = 2 }}]\n"), &[]);
    assert_eq!(why, "run.toml:6: `data.eval`: a weight of 2: held-out rows count once each, remove it");
}

#[test]
fn steps_in_pairs_or_in_packs() {
    let batch = |overrides: &[&str]| load(SMALL, overrides).unwrap().batch;
    assert_eq!(batch(&[]), BatchSection { pairs: Some(16), packs: None, tokens: 4096 });
    let packs = batch(&["batch.packs=3"]);
    assert_eq!(packs, BatchSection { pairs: None, packs: Some(3), tokens: 4096 });
    let resolved = load(SMALL, &["batch.packs=3"]).unwrap().to_toml().unwrap();
    assert_eq!(load(&resolved, &[]).unwrap().batch, packs);
}

#[test]
fn warmup_in_steps_or_as_a_share() {
    assert_eq!(OptimSection { warmup_ratio: 0.1, ..OptimSection::default() }.warmup(101), 11);
    assert_eq!(OptimSection { warmup_steps: 5, ..OptimSection::default() }.warmup(101), 5);
}

#[test]
fn refusals_name_line_key_value_and_remedy() {
    let file = |tail: &str| refusal(&format!("{SMALL}{tail}"), &[]);
    let set = |text: &str| refusal(SMALL, &[text]);
    let cases = [
        file("[optim]\nlrr = 1.0\n"),
        file("[optimizer]\nlr = 1.0\n"),
        file("[optim]\nlr = \"fast\"\n"),
        file("[optim]\nlr = -1\n"),
        file("[optim]\nlr = nan\n"),
        file("[optim]\nlr = \n"),
        file("[optim]\nlr = 1.0\nlr = 2.0\n"),
        file("[optim]\nschedule = \"step\"\n"),
        file("[optim]\nwarmup_steps = 5\nwarmup_ratio = 0.1\n"),
        file("[batch]\npairs = 0\n"),
        file("[batch]\ntokens = -5\n"),
        file("[batch]\npacks = 0\n"),
        file("[batch]\npacks = 2\npairs = 16\n"),
        file("[loss]\nlabel_smoothing = 0.5\n"),
        file("optim.lr = inf\n"),
        refusal("[data]\ntrain = \"a\"\n", &[]),
        refusal("[model]\npath = \"\"\n", &[]),
        set("optim.lr=-1"),
        set("optim.lr=NaN"),
        set("optim.lr=nan"),
        set("optim.lrr=1"),
        set("lr=1"),
        set("optim.lr"),
        set("model.path.x=1"),
        set("loss.name=kot"),
        set("train.seed=-3"),
    ];
    insta::assert_snapshot!(cases.join("\n"));
}

#[test]
fn constants_of_the_other_optimizer_are_refused() {
    let why = |keys: &str| refusal(&format!("{SMALL}[optim]\n{keys}"), &[]);
    let alpha = why("alpha = 0.9\n");
    assert!(
        alpha.ends_with(
            "`optim.alpha` = 0.9: `optim.name` is \"adamw\", which has none: remove it or set optim.name = \"rmsprop\""
        ),
        "{alpha}"
    );
    for key in ["beta1", "beta2"] {
        let text = why(&format!("name = \"rmsprop\"\n{key} = 0.5\n"));
        let end = format!(
            "`optim.{key}` = 0.5: `optim.name` is \"rmsprop\", which has none: remove it or set optim.name = \"adamw\""
        );
        assert!(text.ends_with(&end), "{text}");
    }
    assert!(why("name = \"sgd\"\n").contains("optim.name"), "{}", why("name = \"sgd\"\n"));
}

#[test]
fn bytes_that_are_not_utf8_and_a_missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let missing = format!("{:#}", Config::load(&file, &[]).unwrap_err());
    assert!(missing.contains("run.toml` cannot be read: name an existing TOML file: No such file"), "{missing}");
    fs::write(&file, b"[model]\npath = \"\xff\"\n").unwrap();
    let bytes = format!("{:#}", Config::load(&file, &[]).unwrap_err());
    assert!(bytes.ends_with("run.toml:2: the bytes are not UTF-8; save the file as UTF-8"), "{bytes}");
}

#[test]
fn an_unknown_key_is_told_what_it_is_here() {
    for (key, part) in [
        ("optim.lrr", "did you mean `optim.lr`?"),
        ("train.lr", "did you mean `optim.lr`?"),
        ("lr", "did you mean `optim.lr`?"),
        ("train.epoch", "did you mean `train.epochs`?"),
        ("learning_rate", "TRL's and axolotl's and LLaMA-Factory's `learning_rate` is `optim.lr` here"),
        ("train.per_device_train_batch_size", "is near to `batch.pairs` here (rows a step are"),
        ("train.cutoff_len", "LLaMA-Factory's `cutoff_len` is near to `data.max_response_tokens` here"),
        ("train.output_dir", "`output_dir` has no counterpart: the run folder is named on the command line"),
        ("train.wandb_entity", "another tool's `wandb_entity` has no counterpart: every step is in"),
        ("train.qqqqqq", "unknown key `train.qqqqqq`; correct the name"),
    ] {
        let by_set = refusal(SMALL, &[&format!("{key}=1")]);
        let by_file = refusal(&format!("{key} = 1\n{SMALL}"), &[]);
        assert!(by_set.contains(part) && by_file.contains(part), "{key}: {by_set}\n{by_file}");
        assert!(by_file.starts_with("run.toml:1: unknown key"), "{by_file}");
    }
}
