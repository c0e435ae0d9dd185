//! Weights in from safetensors, and out under the names they came with.
//!
//! Owns the checks of names, shapes and sizes, the conversion of element types and the seeded random start. One piece of
//! one tensor at a time is in host memory.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use serde::Deserialize;

use super::{CONFIG_FILE, Family, ModelConfig, NormKind, ParamSet, TensorSpec, pieces};
use crate::{
    device::{DType, Float},
    files::{
        LARGEST_TEXT, read_regular,
        safetensors::{self, Dtype, PIECE_BYTES, Reader, Spec, TensorInfo},
    },
    rng::{Philox, Purpose},
};

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const TIED_HEAD: &str = "lm_head.weight";
/// What GPT-2's released files leave out of their tensors' names.
const GPT2_PREFIX: &str = "transformer.";

/// What to do about weights in another form.
pub(super) const CONVERT: &str = "warpo reads weights as transformers saves them: load the folder in transformers and \
                                  write it with save_pretrained";
const MATCH: &str = "use the config.json these weights were saved with";

/// Tensors named in an error before it only counts the rest.
const NAMED: usize = 4;

/// Elements of a tensor that are converted at a time.
const PIECE: usize = PIECE_BYTES / size_of::<f32>();

/// Fills `params` from a folder's `model.safetensors` or its shards; f32, f16 and bf16 are converted to `T`. Masters of trained
/// weights have the values as they are in the files: f16 and bf16 fit in f32 exactly.
///
/// With a tied head a `lm_head.weight` in the file is accepted if it equals the embedding.
///
/// # Errors
/// A file is missing, cut short or malformed; a tensor is missing, unknown or has another shape or element type; a
/// value is not finite in `T`.
pub fn load<T: Float>(params: &ParamSet<T>, config: &ModelConfig, folder: &Path) -> Result<()> {
    let mut checkpoint = Checkpoint::open(folder)?;
    checkpoint.add_prefix(config);
    checkpoint.check_names(params, config)?;
    for spec in &params.layout().tensors {
        checkpoint.check_shape(spec)?;
    }
    for spec in &params.layout().tensors {
        for piece in file_pieces(spec) {
            checkpoint.load(params, spec, piece)?;
        }
        if spec.offset == params.layout().embedding.start {
            checkpoint.check_tied_head(spec, config)?;
        }
    }
    Ok(())
}

/// Fills `params` with a random start: norms that change nothing, biases 0, matrices normal with the config's deviation.
///
/// A matrix's values depend on the seed and on its place in the layout, which a tied head does not change. Weights are their
/// own masters.
///
/// # Errors
/// The copy to the device fails.
pub fn random<T: Float>(params: &ParamSet<T>, config: &ModelConfig, seed: u64) -> Result<()> {
    for (number, spec) in params.layout().tensors.iter().enumerate() {
        let is_norm = spec.name.ends_with(".weight") && config.norm != NormKind::RmsPlusOne;
        let philox = Philox::new(seed, Purpose::Init, number as u32);
        for piece in pieces(0..spec.elements(), PIECE) {
            let mut values = vec![if is_norm { 1.0 } else { 0.0 }; piece.len()];
            if spec.decay {
                philox.fill_normal_from(piece.start as u64 / 4, &mut values, config.initializer_range);
            }
            let values: Vec<T> = values.into_iter().map(T::from_f32).collect();
            params.device().copy_in(&params.weight(&spec.part(piece)), &values)?;
        }
    }
    params.start()
}

/// Writes `model.safetensors` into a folder, as `T` and whole.
///
/// # Errors
/// The file cannot be written.
pub fn save<T: Float>(params: &ParamSet<T>, folder: &Path) -> Result<()> {
    let dtype = if T::DTYPE == DType::Bf16 { Dtype::BF16 } else { Dtype::F32 };
    let tensors = &params.layout().tensors;
    let specs: Vec<Spec> =
        tensors.iter().map(|spec| Spec { name: spec.name.clone(), dtype, shape: spec.file_shape() }).collect();
    // transformers refuses a file that does not say which framework's layout it has.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::write(&folder.join(WEIGHTS_FILE), Some(about), &specs, |file| {
        for (number, spec) in tensors.iter().enumerate() {
            for piece in file_pieces(spec) {
                let values = params.device().download(&params.weight(&spec.part(piece.clone())))?;
                let mut write = |start: usize, values: &[T]| {
                    file.write(number, start * size_of::<T>(), bytemuck::cast_slice(values))
                };
                if !spec.transposed {
                    write(piece.start, &values)?;
                    continue;
                }
                let rows = file_rows(spec, &piece);
                let values = transpose(&values, spec.shape[1]);
                rows.starts().zip(values.chunks(rows.width)).try_for_each(|(start, row)| write(start, row))?;
            }
        }
        Ok(())
    })
}

/// A tensor cut into what is in host memory at a time: where the file has it transposed, whole rows of the arena's.
fn file_pieces(spec: &TensorSpec) -> impl Iterator<Item = Range<usize>> {
    let row = if spec.transposed { spec.shape[1] } else { 1 };
    pieces(0..spec.elements(), (PIECE / row).max(1) * row)
}

/// Where the file has some rows of a transposed tensor: a run of `width` elements in each of its own rows, which are
/// `pitch` elements long; one run if these are all rows.
struct FileRows {
    first: usize,
    width: usize,
    pitch: usize,
    count: usize,
}

fn file_rows(spec: &TensorSpec, piece: &Range<usize>) -> FileRows {
    let (rows, columns) = (spec.shape[0], spec.shape[1]);
    let width = piece.len() / columns;
    if width == rows {
        return FileRows { first: 0, width: piece.len(), pitch: piece.len(), count: 1 };
    }
    FileRows { first: piece.start / columns, width, pitch: rows, count: columns }
}

impl FileRows {
    /// The first element of each run in the file's tensor.
    fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        let Self { first, pitch, count, .. } = *self;
        (0..count).map(move |row| first + row * pitch)
    }
}

/// The transpose of a matrix with `rows` columns: what comes out has `rows` rows.
fn transpose<E: Copy>(values: &[E], rows: usize) -> Vec<E> {
    let columns = values.len() / rows;
    (0..rows).flat_map(|row| (0..columns).map(move |column| values[column * rows + row])).collect()
}

/// Values in f32; f16 and bf16 fit in it exactly.
fn widen(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => pairs.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// All weight files of a folder.
struct Checkpoint {
    /// The file to name when the whole is meant.
    path: PathBuf,
    shards: Vec<Reader>,
    /// Tensor name to shard.
    places: BTreeMap<String, usize>,
    /// What the names in `places` have in front of those in the files.
    prefix: &'static str,
}

impl Checkpoint {
    fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(WEIGHTS_FILE);
        if single.exists() {
            let shard = Reader::open(single.clone())?;
            let places = shard.names().into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { path: single, shards: vec![shard], places, prefix: "" });
        }
        let index = folder.join(INDEX_FILE);
        if !index.exists() {
            let others = other_formats(folder);
            ensure!(
                others.is_empty(),
                "{}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there, only {}: {CONVERT}",
                folder.display(),
                others.join(", ")
            );
            bail!(
                "{}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there: add the weights or set model.init = \"random\"",
                folder.display()
            );
        }
        Self::open_sharded(folder, index)
    }

    fn open_sharded(folder: &Path, index: PathBuf) -> Result<Self> {
        let name = index.display().to_string();
        let text = read_regular(&index, LARGEST_TEXT)?.with_context(|| format!("{name}: there is no such file"))?;
        let Index { weight_map } = serde_json::from_slice(&text).with_context(|| format!("{name}: broken index"))?;
        let mut checkpoint = Self { path: index, shards: Vec::new(), places: BTreeMap::new(), prefix: "" };
        let mut opened = BTreeMap::new();
        for (tensor, file) in weight_map {
            // A shard lies beside its index: a path elsewhere is not followed.
            ensure!(Path::new(&file).file_name() == Some(file.as_ref()), "{name}: `{file}` is not a file name");
            let shard = match opened.get(&file) {
                Some(&shard) => shard,
                None => {
                    checkpoint.shards.push(Reader::open(folder.join(&file)).with_context(|| name.clone())?);
                    opened.insert(file.clone(), checkpoint.shards.len() - 1);
                    checkpoint.shards.len() - 1
                }
            };
            if checkpoint.shards[shard].info(&tensor).is_some() {
                checkpoint.places.insert(tensor, shard);
                continue;
            }
            // A tied head's name in the index of files that leave it out is as much a fault as any other's: the index
            // and the files may not be of one model.
            let remedy =
                if tensor == TIED_HEAD { ": remove its line if the head is tied to the embedding" } else { "" };
            bail!("{name}: tensor `{tensor}` is not in {file}, where the index places it{remedy}");
        }
        Ok(checkpoint)
    }

    /// Released GPT-2 files name their tensors without the prefix that transformers gives them when it saves.
    fn add_prefix(&mut self, config: &ModelConfig) {
        if config.family != Family::Gpt2 || self.places.keys().any(|name| name.starts_with(GPT2_PREFIX)) {
            return;
        }
        let stripped = std::mem::take(&mut self.places);
        let full = |name: String| if name == TIED_HEAD { name } else { format!("{GPT2_PREFIX}{name}") };
        self.places = stripped.into_iter().map(|(name, shard)| (full(name), shard)).collect();
        self.prefix = GPT2_PREFIX;
    }

    fn check_names<T: Float>(&self, params: &ParamSet<T>, config: &ModelConfig) -> Result<()> {
        let wanted: BTreeMap<&str, ()> = params.layout().tensors.iter().map(|spec| (spec.name.as_str(), ())).collect();
        let missing: Vec<&str> = wanted.keys().copied().filter(|&name| !self.places.contains_key(name)).collect();
        ensure!(missing.is_empty(), "{}: missing {}: {MATCH}", self.path.display(), list(&missing));
        // Old files carry the rotary frequencies, which the config determines, and GPT-2's its causal masks.
        let is_mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
        let is_buffer = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq")
                || (config.tied && name == TIED_HEAD)
                || (config.family == Family::Gpt2 && is_mask(name))
        };
        let extra = self.places.keys().map(String::as_str).filter(|name| !wanted.contains_key(name));
        let extra: Vec<&str> = extra.filter(|name| !is_buffer(name)).collect();
        ensure!(extra.is_empty(), "{}: not part of this model: {}: {MATCH}", self.path.display(), list(&extra));
        Ok(())
    }

    fn check_shape(&self, spec: &TensorSpec) -> Result<()> {
        let shard = self.shard(&spec.name);
        let found = &self.info(&spec.name).shape;
        ensure!(
            *found == spec.file_shape(),
            "{}: tensor `{}`: expected {:?}, found {found:?}: {MATCH}",
            shard.path().display(),
            spec.name,
            spec.file_shape()
        );
        Ok(())
    }

    /// Fills a piece of a tensor.
    fn load<T: Float>(&self, params: &ParamSet<T>, spec: &TensorSpec, piece: Range<usize>) -> Result<()> {
        let values = self.values(spec, &piece)?;
        if let Some(at) = values.iter().position(|&value| !T::split(value).0.to_f32().is_finite()) {
            let path = self.shard(&spec.name).path().display();
            bail!("{path}: tensor `{}`: element {} is {}", spec.name, piece.start + at, values[at]);
        }
        params.fill(&spec.part(piece), &values)
    }

    fn check_tied_head(&self, embedding: &TensorSpec, config: &ModelConfig) -> Result<()> {
        if !config.tied || !self.places.contains_key(TIED_HEAD) {
            return Ok(());
        }
        let elements = self.info(TIED_HEAD).shape.iter().product::<usize>();
        let same = |piece: Range<usize>| -> Result<bool> {
            let [head, own] = [TIED_HEAD, &embedding.name].map(|name| self.read(name, piece.clone()));
            Ok(head?.iter().zip(&own?).all(|(h, e)| h == e))
        };
        let mut differs = elements != embedding.elements();
        for piece in file_pieces(embedding) {
            differs = differs || !same(piece)?;
        }
        ensure!(
            !differs,
            "{}: tensor `{TIED_HEAD}` differs from `{}` though tie_word_embeddings is true: set it to false \
             in {CONFIG_FILE} or remove the tensor",
            self.shard(TIED_HEAD).path().display(),
            embedding.name
        );
        Ok(())
    }

    /// A piece of a tensor, elements in the arena's order.
    fn values(&self, spec: &TensorSpec, piece: &Range<usize>) -> Result<Vec<f32>> {
        if !spec.transposed {
            return self.read(&spec.name, piece.clone());
        }
        let rows = file_rows(spec, piece);
        let mut values = Vec::with_capacity(piece.len());
        for start in rows.starts() {
            values.extend(self.read(&spec.name, start..start + rows.width)?);
        }
        Ok(transpose(&values, piece.len() / spec.shape[1]))
    }

    /// Elements of a tensor, in the file's order.
    fn read(&self, name: &str, elements: Range<usize>) -> Result<Vec<f32>> {
        let (shard, own) = (self.shard(name), self.in_file(name));
        let dtype = self.info(name).dtype;
        let width = dtype.bitsize() / 8;
        let mut bytes = vec![0; elements.len() * width];
        shard.read(own, elements.start * width, &mut bytes)?;
        widen(&bytes, dtype).with_context(|| {
            let path = shard.path().display();
            format!("{path}: tensor `{own}`: element type {dtype:?} does not run: only F32, F16 and BF16 do")
        })
    }

    fn shard(&self, name: &str) -> &Reader {
        &self.shards[self.places[name]]
    }

    fn info(&self, name: &str) -> &TensorInfo {
        let info = self.shard(name).info(self.in_file(name));
        info.expect("the checkpoint's table names the shard that holds a tensor")
    }

    /// The name a tensor has in its file.
    fn in_file<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(self.prefix).unwrap_or(name)
    }
}

/// Weights in a form that is not read.
pub(super) fn other_formats(folder: &Path) -> Vec<String> {
    let is_weights = |name: &str| {
        let named = ["pytorch_model.", "tf_model.", "flax_model.", "model.ckpt", "consolidated."];
        let endings = [".gguf", ".safetensors", ".pth", ".onnx"];
        named.iter().any(|start| name.starts_with(start)) || endings.iter().any(|end| name.ends_with(end))
    };
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<String> = names.filter_map(|name| name.into_string().ok()).filter(|n| is_weights(n)).collect();
    found.sort();
    if found.len() > NAMED {
        let rest = found.split_off(NAMED).len();
        found.push(format!("{rest} more"));
    }
    found
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let rest = names.len().saturating_sub(NAMED);
    let tensors = if names.len() == 1 { "tensor" } else { "tensors" };
    let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
    format!("{tensors} {}{more}", quoted.join(", "))
}
