//! Rotary tables: of the places where a setting can stand, the one that transformers takes.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{
    super::rope::{Rope, Scaling},
    Family,
    fields::Fields,
};

/// Kinds of layers that have tables of their own in Gemma 3.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
const THETA: &str = "rope_theta";
const ORIGINAL: &str = "original_max_position_embeddings";
const PARTIAL: &str = "partial_rotary_factor";

/// The tables of a family: one, or Gemma 3's for layers that see everything and for those with a window.
pub(super) fn read(family: Family, fields: &Fields, positions: usize) -> Result<Vec<Rope>> {
    let is_phi3 = family == Family::Phi3;
    fields.only_number(PARTIAL, 1.0, !is_phi3)?;
    if is_phi3 {
        // Its class has the key, for a scaling that does not run here.
        fields.dim(ORIGINAL, 4096)?;
    }
    if family == Family::Gemma3 {
        return gemma3(fields, positions as f64);
    }
    let empty = Map::new();
    let table = table(fields, &empty)?;
    if let Some(kind) = KINDS.into_iter().find(|&kind| table.given(kind).is_some()) {
        bail!("{} does not run: this family has one rotary table for all layers", table.name(kind));
    }
    let theta = theta(&table, fields, THETA, family.class().rope_theta)?;
    // What stands at the top wins, as transformers reads Phi-3 and, with it, every family.
    let original = if fields.given(ORIGINAL).is_some() { fields } else { &table };
    let scaling = scaling(&table, positions as f64, original)?;
    ensure!(
        !is_phi3 || scaling == Scaling::None,
        "{} does not run: in Phi-3 only \"default\" does",
        table.name("rope_type")
    );
    Ok(vec![Rope { theta, scaling }])
}

/// `rope_scaling`, unless it is null or empty, and `rope_parameters` otherwise: transformers' order, also where both are
/// there.
fn table<'a>(fields: &Fields<'a>, empty: &'a Map<String, Value>) -> Result<Fields<'a>> {
    let scaling = fields.object("rope_scaling")?.filter(|table| !table.raw().is_empty());
    let table = match scaling {
        Some(table) => Some(table),
        None => fields.object("rope_parameters")?,
    };
    Ok(table.unwrap_or_else(|| Fields::inside(empty, "rope_parameters")))
}

/// The base in the table, else the one at the top under `key`, else the class's.
fn theta(table: &Fields, fields: &Fields, key: &str, default: f64) -> Result<f64> {
    if table.given(THETA).is_some() { table.needed(THETA) } else { fields.positive(key, default) }
}

fn gemma3(fields: &Fields, positions: f64) -> Result<Vec<Rope>> {
    let parameters = fields.object("rope_parameters")?;
    let mut tables = [Map::new(), Map::new()];
    if let Some(parameters) = &parameters {
        if let Some(key) = parameters.raw().keys().find(|key| !KINDS.contains(&key.as_str())) {
            bail!(
                "{} does not run: Gemma 3 has one table in {} and one in {}",
                parameters.name(key),
                KINDS[0],
                KINDS[1]
            );
        }
        for (map, kind) in tables.iter_mut().zip(KINDS) {
            *map = parameters.object(kind)?.map_or_else(Map::new, |table| table.raw().clone());
        }
    }
    let mut names = KINDS.map(|kind| format!("rope_parameters.{kind}"));
    if let Some(scaling) = fields.object("rope_scaling")? {
        add_to_full(&mut tables[0], parameters.as_ref(), &scaling)?;
        names[0] = "rope_scaling".to_owned();
    }
    let [full, sliding] = [0, 1].map(|i| Fields::inside(&tables[i], &names[i]));
    // transformers looks for it outside of the tables and never finds it.
    for table in [&full, &sliding] {
        table.only("truncate", &true.into())?;
    }
    let rope = |table: &Fields, key: &str, default: f64| -> Result<Rope> {
        Ok(Rope { theta: theta(table, fields, key, default)?, scaling: scaling(table, positions, table)? })
    };
    Ok(vec![rope(&full, THETA, Family::Gemma3.class().rope_theta)?, rope(&sliding, "rope_local_base_freq", 1e4)?])
}

/// Gemma 3 of transformers 4 scales the layers that see everything by a `rope_scaling` at the top.
fn add_to_full(full: &mut Map<String, Value>, parameters: Option<&Fields>, scaling: &Fields) -> Result<()> {
    if let Some(parameters) = parameters {
        ensure!(
            parameters.get(KINDS[0]).is_some(),
            "rope_scaling and rope_parameters are both there, and the second has no {} to scale: remove one",
            KINDS[0]
        );
    }
    // The table has a type of its own, "default", before this one comes over it; the old key does not change it.
    ensure!(
        scaling.given("type").is_none() || scaling.given("rope_type").is_some(),
        "{} does not run: Gemma 3 takes the key rope_type only",
        scaling.name("type")
    );
    full.extend(scaling.raw().clone());
    Ok(())
}

/// By the formulas of transformers' `modeling_rope_utils`; `original` holds the length before the stretch.
fn scaling(table: &Fields, positions: f64, original: &Fields) -> Result<Scaling> {
    table.only_number(PARTIAL, 1.0, false)?;
    let original = || original.positive(ORIGINAL, positions);
    let kind = table.given("rope_type").or_else(|| table.given("type"));
    match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: table.needed("factor")? }),
        Some("llama3") => Ok(Scaling::Llama3 {
            factor: table.needed("factor")?,
            low_freq_factor: table.needed("low_freq_factor")?,
            high_freq_factor: table.needed("high_freq_factor")?,
            original_positions: original()?,
        }),
        Some("yarn") => yarn(table, positions, original()?),
        Some(_) => bail!(
            "{} {} does not run: only rope_type \"default\", \"linear\", \"llama3\" and \"yarn\" do",
            table.name("").trim_end_matches('.'),
            Value::Object(table.raw().clone())
        ),
    }
}

fn yarn(table: &Fields, positions: f64, original_positions: f64) -> Result<Scaling> {
    // Null, not absence, asks for the ratio of the lengths.
    let ratio = positions / original_positions;
    ensure!(table.given("factor").is_some(), "{} is missing", table.name("factor"));
    let factor = table.nullable_positive("factor", None)?.unwrap_or(ratio);
    let truncate = match table.given("truncate") {
        None => true,
        Some(Value::Null) => false,
        Some(value) => {
            value.as_bool().ok_or_else(|| anyhow!("{} {value}: expected true or false", table.name("truncate")))?
        }
    };
    Ok(Scaling::Yarn {
        factor,
        attention_factor: yarn_attention_factor(table, factor)?,
        beta_fast: table.nullable_positive("beta_fast", None)?.unwrap_or(32.0),
        beta_slow: table.nullable_positive("beta_slow", None)?.unwrap_or(1.0),
        truncate,
        original_positions,
    })
}

fn yarn_attention_factor(table: &Fields, factor: f64) -> Result<f64> {
    let by = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    if let Some(given) = table.nullable_positive("attention_factor", None)? {
        return Ok(given);
    }
    let scales = [table.nullable_positive("mscale", None)?, table.nullable_positive("mscale_all_dim", None)?];
    Ok(if let [Some(scale), Some(all)] = scales { by(scale) / by(all) } else { by(1.0) })
}
