//! The quickstart's tokenizer, data and configuration, as committed.

use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{TokenizerBuilder, TokenizerImpl};
use warpo::config::Config;
use warpo::data::tokenize::Tokenizer;
use warpo::data::{
    Dataset, Limits, OnError,
    encode::{EncodeOptions, Encoder},
    records::{self, Body, Columns, Text},
};

const VOCAB: usize = 1024;

fn examples() -> PathBuf {
    crate::support::root().join("examples")
}

/// The committed tokenizer.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::load(&examples().join("quickstart-model"), VOCAB).unwrap()
}

/// Prompt, chosen and rejected text of a plain pair.
fn plain_pair(record: records::Record) -> (String, String, String) {
    match (record.prompt, record.body) {
        (Some(Text::Plain(prompt)), Body::Pair { chosen: Text::Plain(chosen), rejected: Text::Plain(rejected) }) => {
            (prompt, chosen, rejected)
        }
        other => panic!("not a plain pair: {other:?}"),
    }
}

/// Trains the quickstart's byte-level BPE on its training rows.
fn train() -> String {
    type Trained = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    let bytes = std::fs::read(examples().join("data/persona_agreeableness/train.jsonl")).unwrap();
    let rows = records::lines(&bytes).into_iter().map(|(_, line)| plain_pair(records::parse(line).unwrap()));
    let texts: Vec<String> = rows.flat_map(|row| [row.0 + &row.1, row.2]).collect();
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let mut tokenizer: Trained = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(byte_level.into()))
        .with_post_processor(None)
        .with_decoder(Some(byte_level.into()))
        .build()
        .unwrap();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(VOCAB)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from("<|endoftext|>", true)])
        .build();
    tokenizer.train(&mut trainer, texts.iter()).unwrap();
    tokenizer.to_string(true).unwrap() + "\n"
}

#[test]
fn the_tokenizer_is_what_training_on_the_rows_gives() {
    let committed = std::fs::read_to_string(examples().join("quickstart-model/tokenizer.json")).unwrap();
    assert!(train() == committed, "run scripts/make-quickstart-tokenizer.sh and look at the difference");
}

/// Not a check: `scripts/make-quickstart-tokenizer.sh` runs it to write the file again.
#[test]
#[ignore = "writes examples/quickstart-model/tokenizer.json"]
fn write_the_tokenizer() {
    std::fs::write(examples().join("quickstart-model/tokenizer.json"), train()).unwrap();
}

#[test]
fn every_row_fits_the_configuration() {
    let config = Config::load(&examples().join("quickstart.toml"), &[]).unwrap();
    let limits = Limits {
        prompt: config.data.max_prompt_tokens,
        response: config.data.max_response_tokens,
        tree: config.batch.tokens,
    };
    let encoder = Encoder::new(tokenizer(), None, EncodeOptions::new(limits));
    let load = |file: &Path| Dataset::load(file, &Columns::new(), &encoder, OnError::Stop).unwrap();
    let (train, eval) = (load(&config.data.train.0[0].path), load(&config.data.eval.unwrap().0[0].path));
    assert_eq!((train.trees.len(), eval.trees.len()), (895, 105));
    let yes_no_and_eos = train.trees.iter().all(|tree| tree.unwrap().segments[1..].iter().all(|s| s.tokens.len() == 2));
    assert!(yes_no_and_eos, "each answer is one token and EOS");
}

/// `tests/parity/make_tokenizer_ids.py` made the fixture with the Python package.
#[test]
fn ids_are_those_of_the_python_package() {
    #[derive(serde::Deserialize)]
    struct Row {
        text: String,
        ids: Vec<u32>,
    }
    let rows: Vec<Row> = serde_json::from_str(include_str!("../fixtures/tokenizer_ids.json")).unwrap();
    let tokenizer = tokenizer();
    for Row { text, ids } in rows {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}
