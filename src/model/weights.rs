//! Weights in from safetensors, and out under the names they came with.
//!
//! Owns the checks of names, shapes and sizes, the conversion of element types and the seeded random start. One tensor
//! at a time is in host memory.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde::Deserialize;

use super::{CONFIG_FILE, Family, Layout, ModelConfig, NormKind, TensorSpec};
use crate::{
    device::{Buffer, DType, Device, Float},
    files::{LARGEST_TEXT, is_lfs_pointer, lfs_pointer, read_regular, write_whole},
    rng::{Philox, Purpose},
};

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const TIED_HEAD: &str = "lm_head.weight";
/// What GPT-2's released files leave out of their tensors' names.
const GPT2_PREFIX: &str = "transformer.";

/// The safetensors format's own limit, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;
const COPY_AGAIN: &str = "copy the file again";
/// What to do about weights in another form.
pub(super) const CONVERT: &str = "warpo reads weights as transformers saves them: load the folder in transformers and \
                                  write it with save_pretrained";
const MATCH: &str = "use the config.json these weights were saved with";

/// Tensors named in an error before it only counts the rest.
const NAMED: usize = 4;

/// Fills `params` from a folder's `model.safetensors` or its shards; f32, f16 and bf16 are converted to `T`. `master`, if
/// there is one, gets the values as they are in the files: f16 and bf16 fit in f32 exactly.
///
/// With a tied head a `lm_head.weight` in the file is accepted if it equals the embedding.
///
/// # Errors
/// A file is missing, cut short or malformed; a tensor is missing, unknown or has another shape or element type; a
/// value is not finite in `T`.
pub fn load<T: Float>(
    device: &Device,
    params: &Buffer<T>,
    master: Option<&Buffer<f32>>,
    layout: &Layout,
    config: &ModelConfig,
    folder: &Path,
) -> Result<()> {
    let mut checkpoint = Checkpoint::open(folder)?;
    checkpoint.add_prefix(config);
    checkpoint.check_names(layout, config)?;
    for spec in &layout.tensors {
        checkpoint.check_shape(spec)?;
    }
    for spec in &layout.tensors {
        let (mut values, path) = checkpoint.read(&spec.name)?;
        if spec.transposed {
            values = transpose(&values, spec.shape[0]);
        }
        let cast: Vec<T> = values.iter().map(|&value| T::from_f32(value)).collect();
        if let Some(at) = cast.iter().position(|value| !value.to_f32().is_finite()) {
            bail!("{}: tensor `{}`: element {at} is {}", path.display(), spec.name, values[at]);
        }
        if spec.offset == layout.embedding.start {
            checkpoint.check_tied_head(&spec.name, &values, config)?;
        }
        device.copy_in(&params.slice(spec.range()), &cast)?;
        // In f32 the parameters are their own master.
        if let Some(master) = master.filter(|_| T::DTYPE != DType::F32) {
            device.copy_in(&master.slice(spec.range()), &values)?;
        }
    }
    Ok(())
}

/// Fills `params` with a random start: norms that change nothing, biases 0, matrices normal with the config's deviation.
///
/// A matrix's values depend on the seed and on its place in the layout, which a tied head does not change.
///
/// # Errors
/// The copy to the device fails.
pub fn random<T: Float>(
    device: &Device,
    params: &Buffer<T>,
    layout: &Layout,
    config: &ModelConfig,
    seed: u64,
) -> Result<()> {
    for (number, spec) in layout.tensors.iter().enumerate() {
        let is_norm = spec.name.ends_with(".weight") && config.norm != NormKind::RmsPlusOne;
        let mut values = vec![if is_norm { 1.0 } else { 0.0 }; spec.elements()];
        if spec.decay {
            Philox::new(seed, Purpose::Init, number as u32).fill_normal(&mut values, config.initializer_range);
        }
        let values: Vec<T> = values.into_iter().map(T::from_f32).collect();
        device.copy_in(&params.slice(spec.range()), &values)?;
    }
    Ok(())
}

/// Writes `model.safetensors` into a folder, as `T` and whole.
///
/// # Errors
/// The file cannot be written.
pub fn save<T: Float>(device: &Device, params: &Buffer<T>, layout: &Layout, folder: &Path) -> Result<()> {
    write_whole(&folder.join(WEIGHTS_FILE), |out| {
        out.write_all(&header(layout, T::DTYPE)?)?;
        for spec in &layout.tensors {
            let mut values = device.download(&params.slice(spec.range()))?;
            if spec.transposed {
                values = transpose(&values, spec.shape[1]);
            }
            out.write_all(bytemuck::cast_slice(&values))?;
        }
        Ok(())
    })
}

/// The transpose of a matrix with `rows` columns: what comes out has `rows` rows.
fn transpose<E: Copy>(values: &[E], rows: usize) -> Vec<E> {
    let columns = values.len() / rows;
    (0..rows).flat_map(|row| (0..columns).map(move |column| values[column * rows + row])).collect()
}

/// Length and JSON of the file's head, padded so that the data is aligned.
fn header(layout: &Layout, dtype: DType) -> Result<Vec<u8>> {
    let (dtype, width) = if dtype == DType::Bf16 { (Dtype::BF16, 2) } else { (Dtype::F32, 4) };
    let info = |spec: &TensorSpec| {
        let range = spec.range();
        let data_offsets = (range.start * width, range.end * width);
        (spec.name.clone(), TensorInfo { dtype, shape: spec.file_shape(), data_offsets })
    };
    // transformers refuses a file that does not say which framework's layout it has.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(about), layout.tensors.iter().map(info).collect())?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}

/// One safetensors file with its head read.
struct Shard {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let name = path.display().to_string();
        let metadata = fs::metadata(&path).with_context(|| name.clone())?;
        // Opening a pipe would wait for its other end.
        ensure!(metadata.is_file(), "{name}: a folder, pipe or device: a file is needed in its place");
        let bytes = metadata.len();
        let mut file = File::open(&path).with_context(|| name.clone())?;
        let mut start = Vec::new();
        (&mut file).take(64).read_to_end(&mut start).with_context(|| name.clone())?;
        ensure!(!is_lfs_pointer(&start), lfs_pointer(&path));
        let length = start
            .first_chunk()
            .ok_or_else(|| anyhow!("{name}: truncated: {bytes} bytes hold no header: {COPY_AGAIN}"))?;
        let length = u64::from_le_bytes(*length);
        ensure!(
            length <= LARGEST_HEADER,
            "{name}: not safetensors: the header takes {length} bytes, more than {LARGEST_HEADER}: {COPY_AGAIN}"
        );
        ensure!(
            length <= bytes - 8,
            "{name}: truncated or not safetensors: the header takes {length} bytes, the file has {bytes}: {COPY_AGAIN}"
        );
        let mut json = vec![0; length as usize];
        file.seek(SeekFrom::Start(8)).with_context(|| name.clone())?;
        file.read_exact(&mut json).with_context(|| name.clone())?;
        let metadata: Metadata =
            serde_json::from_slice(&json).with_context(|| format!("{name}: broken header: {COPY_AGAIN}"))?;
        let data_start = 8 + length;
        let expected = data_start + metadata.data_len() as u64;
        ensure!(bytes >= expected, "{name}: truncated: expected {expected} bytes, found {bytes}: {COPY_AGAIN}");
        ensure!(bytes == expected, "{name}: expected {expected} bytes, found {bytes}: {COPY_AGAIN}");
        Ok(Self { path, file, data_start, metadata })
    }

    fn info(&self, name: &str) -> &TensorInfo {
        self.metadata.info(name).expect("the checkpoint's table names the shard that holds a tensor")
    }

    /// A tensor's values; f16 and bf16 fit in f32 exactly.
    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let TensorInfo { dtype, data_offsets: (start, end), .. } = *self.info(name);
        let mut bytes = vec![0; end - start];
        let place = || format!("{}: tensor `{name}`", self.path.display());
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).with_context(place)?;
        self.file.read_exact(&mut bytes).with_context(place)?;
        let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        Ok(match dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => pairs.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => bail!("{}: element type {other:?} does not run: only F32, F16 and BF16 do", place()),
        })
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// All weight files of a folder.
struct Checkpoint {
    /// The file to name when the whole is meant.
    path: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to shard.
    places: BTreeMap<String, usize>,
    /// What the names in `places` have in front of those in the files.
    prefix: &'static str,
}

impl Checkpoint {
    fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(WEIGHTS_FILE);
        if single.exists() {
            let shard = Shard::open(single.clone())?;
            let places = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
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
                    checkpoint.shards.push(Shard::open(folder.join(&file)).with_context(|| name.clone())?);
                    opened.insert(file.clone(), checkpoint.shards.len() - 1);
                    checkpoint.shards.len() - 1
                }
            };
            if checkpoint.shards[shard].metadata.info(&tensor).is_some() {
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

    fn check_names(&self, layout: &Layout, config: &ModelConfig) -> Result<()> {
        let wanted: BTreeMap<&str, ()> = layout.tensors.iter().map(|spec| (spec.name.as_str(), ())).collect();
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
        let shard = &self.shards[self.places[&spec.name]];
        let found = &shard.info(self.in_file(&spec.name)).shape;
        let place = shard.path.display();
        ensure!(
            *found == spec.file_shape(),
            "{place}: tensor `{}`: expected {:?}, found {found:?}: {MATCH}",
            spec.name,
            spec.file_shape()
        );
        Ok(())
    }

    fn check_tied_head(&mut self, name: &str, embedding: &[f32], config: &ModelConfig) -> Result<()> {
        if !config.tied || !self.places.contains_key(TIED_HEAD) {
            return Ok(());
        }
        let (head, path) = self.read(TIED_HEAD)?;
        let differs = head.len() != embedding.len() || head.iter().zip(embedding).any(|(h, e)| h != e);
        ensure!(
            !differs,
            "{}: tensor `{TIED_HEAD}` differs from `{name}` though tie_word_embeddings is true: set it to false \
             in {CONFIG_FILE} or remove the tensor",
            path.display()
        );
        Ok(())
    }

    /// A tensor's values and the file they came from.
    fn read(&mut self, name: &str) -> Result<(Vec<f32>, PathBuf)> {
        let own = self.in_file(name).to_owned();
        let shard = &mut self.shards[self.places[name]];
        Ok((shard.read(&own)?, shard.path.clone()))
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
