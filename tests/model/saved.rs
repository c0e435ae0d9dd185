//! Saved folders: what stands in them beside the weights, and folders that are no models.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use warpo::{
    files::read_regular,
    forest::Forest,
    model::{Companions, Model, ModelConfig},
};

use super::{model_for, pair, tiny_json};
use crate::support::fast_device;

const AUTO_MAP: &str = r#"{"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.OwnModel"}"#;

/// A model's `config.json` with some keys more.
fn config(more: Value) -> Value {
    let mut config: Value = serde_json::from_str(&tiny_json(true, 2)).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// What a model saved with the companions of `source` has beside its weights.
fn saved(source: &Path, template: Option<&Path>) -> BTreeMap<String, String> {
    let out = TempDir::new().unwrap();
    let config = ModelConfig::load(source).unwrap();
    let forest = Forest::pack([&pair(1, [3, 2, 2])]).unwrap();
    let model: Model<f32> = model_for(&fast_device(1), &config, &forest);
    let target = out.path().join("made/on/the/way");
    model.save(&target, &Companions::new(source, template).unwrap()).unwrap();
    // Saving over the folder that was loaded from keeps its files.
    model.save(&target, &Companions::new(&target, None).unwrap()).unwrap();
    let mut files = BTreeMap::new();
    let mut folders = vec![target.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&target).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name != "model.safetensors" {
                files.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    files
}

fn json_of(files: &BTreeMap<String, String>, name: &str) -> Value {
    serde_json::from_str(&files[name]).unwrap()
}

#[test]
fn companions_come_along_byte_for_byte() {
    let kept = [
        ("tokenizer.json", "{ }"),
        ("tokenizer_config.json", "{\"b\": 1.50,\n\"a\": \"chat\"}"),
        ("chat_template.jinja", "{{ x }}"),
        ("chat_template.json", "{\"chat_template\": \"not read\"}"),
        ("additional_chat_templates/tool_use.jinja", "{{ tools }}"),
        ("special_tokens_map.json", "{}"),
        ("generation_config.json", "{\"top_p\": 0.90}"),
        ("vocab.json", "{}"),
        ("merges.txt", "#version\n"),
    ];
    let source = crate::support::folder_with(&kept);
    fs::write(source.path().join("config.json"), config(json!({})).to_string()).unwrap();
    fs::write(source.path().join("pytorch_model.bin"), "not carried").unwrap();
    fs::write(source.path().join("setup.py"), "not carried").unwrap();
    let mut files = saved(source.path(), None);
    assert_eq!(json_of(&files, "config.json")["kept_as_it_is"], json!({"z": 1, "a": [1.5, null]}));
    files.remove("config.json");
    let want: BTreeMap<_, _> = kept.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
    assert_eq!(files, want);
}

/// A file of that name wins over `tokenizer_config.json` in transformers, and templates with names stand beside it.
#[test]
fn the_template_of_a_run_takes_the_place_of_all_others() {
    let source = crate::support::folder_with(&[
        ("config.json", &config(json!({})).to_string()),
        ("tokenizer_config.json", r#"{"chat_template": [{"name": "default", "template": "OTHER"}], "eos_token": "x"}"#),
        ("chat_template.jinja", "OTHER"),
        ("chat_template.json", r#"{"chat_template": "OTHER"}"#),
        ("additional_chat_templates/tool_use.jinja", "OTHER"),
        ("mine/run.jinja", "{{ mine }}\n"),
    ]);
    let files = saved(source.path(), Some(&source.path().join("mine/run.jinja")));
    assert_eq!(files["chat_template.jinja"], "{{ mine }}\n");
    assert!(files.values().all(|text| !text.contains("OTHER")), "{files:?}");
    assert_eq!(json_of(&files, "tokenizer_config.json"), json!({"eos_token": "x"}));
}

#[test]
fn a_template_that_only_processors_find_becomes_one_that_tokenizers_find() {
    let processor = ("chat_template.json", r#"{"chat_template": "{{ p }}"}"#);
    let source = crate::support::folder_with(&[("config.json", &config(json!({})).to_string()), processor]);
    assert_eq!(saved(source.path(), None)["chat_template.jinja"], "{{ p }}");
    fs::write(source.path().join("tokenizer_config.json"), r#"{"chat_template": "{{ t }}"}"#).unwrap();
    assert!(!saved(source.path(), None).contains_key("chat_template.jinja"));
}

#[test]
fn the_files_of_auto_map_come_along_or_auto_map_goes() {
    let auto_map: Value = serde_json::from_str(AUTO_MAP).unwrap();
    let tokenizer = r#"{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}"#;
    let source = crate::support::folder_with(&[
        ("config.json", &config(json!({"auto_map": auto_map})).to_string()),
        ("tokenizer_config.json", tokenizer),
        ("configuration_own.py", "class Own: pass\n"),
        ("helper.py", "# imported by the model\n"),
    ]);
    // One of the config's files is missing, and so is the tokenizer's.
    let files = saved(source.path(), None);
    assert!(json_of(&files, "config.json").get("auto_map").is_none());
    assert_eq!(json_of(&files, "tokenizer_config.json"), json!({}));
    assert!(files.keys().all(|name| !name.ends_with(".py")), "{:?}", files.keys());

    fs::write(source.path().join("modeling_own.py"), "from .helper import x\n").unwrap();
    let files = saved(source.path(), None);
    assert_eq!(json_of(&files, "config.json")["auto_map"], auto_map);
    assert_eq!(json_of(&files, "tokenizer_config.json"), json!({}));
    let python: Vec<_> = files.keys().filter(|name| name.ends_with(".py")).collect();
    assert_eq!(python, ["configuration_own.py", "helper.py", "modeling_own.py"]);

    // Classes of another repository are not files of this one.
    let elsewhere = json!({"AutoConfig": "owner/name--configuration_own.Own"});
    fs::write(source.path().join("config.json"), config(json!({"auto_map": elsewhere})).to_string()).unwrap();
    assert_eq!(json_of(&saved(source.path(), None), "config.json")["auto_map"], elsewhere);
}

#[test]
fn companions_that_are_pointers_are_refused_before_anything_is_trained() {
    let source = crate::support::folder_with(&[(
        "tokenizer.model",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    )]);
    let why = format!("{:#}", Companions::new(source.path(), None).unwrap_err());
    assert!(why.contains("tokenizer.model") && why.contains("git lfs pull"), "{why}");
}

#[test]
fn adapters_are_refused_alone_and_beside_a_model() {
    let adapter = r#"{"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 8}"#;
    let source = crate::support::folder_with(&[("adapter_config.json", adapter), ("adapter_model.safetensors", "")]);
    let refusal = || format!("{:#}", ModelConfig::load(source.path()).unwrap_err());
    let why = refusal();
    for part in ["adapter_config.json", "a PEFT adapter for some/base", "merge_and_unload"] {
        assert!(why.contains(part) && !why.contains("remove adapter_config.json"), "{why}");
    }
    fs::write(source.path().join("config.json"), config(json!({})).to_string()).unwrap();
    let why = refusal();
    assert!(why.contains("a PEFT adapter for some/base") && why.contains("remove adapter_config.json"), "{why}");
}

/// Each is refused at once: nothing waits for a pipe, reads a device to its end or keeps a hole in memory.
#[cfg(unix)]
#[test]
fn what_is_no_file_of_a_usual_size_is_refused() {
    let source = crate::support::folder_with(&[]);
    let path = source.path().join("config.json");
    let refused = |part: &str| {
        let why = format!("{:#}", ModelConfig::load(source.path()).unwrap_err());
        assert!(why.contains("config.json") && why.contains(part) && !why.contains('\n'), "{why}");
    };
    fs::create_dir(&path).unwrap();
    refused("a folder");
    fs::remove_dir(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    refused("a pipe or device");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    refused("a pipe or device");
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    refused("takes 1099511627776 bytes");
    fs::remove_file(&path).unwrap();
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    fs::write(&path, deep).unwrap();
    refused("not a JSON object");
    fs::remove_file(&path).unwrap();
    refused("needs a config.json");
}

#[test]
fn a_file_is_read_up_to_its_limit() {
    let source = crate::support::folder_with(&[("a", "12345")]);
    let path = source.path().join("a");
    assert_eq!(read_regular(&path, 5).unwrap().unwrap(), b"12345");
    assert!(read_regular(&path, 4).is_err());
    assert!(read_regular(&source.path().join("b"), 4).unwrap().is_none());
    assert!(read_regular(&path.join("below a file"), 4).unwrap().is_none());
}
