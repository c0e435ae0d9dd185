//! Files of a report: the page, and figures one by one. A file that is there is replaced only if this program wrote it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use crc::{CRC_32_ISO_HDLC, Crc};
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use super::{colour::RUNS, figure::Figure, history::History, page, panels::panels};
use crate::files;

/// Letters of pictures, for a machine may have none of its own: Latin, Greek and Cyrillic.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
const FAMILY: &str = "DejaVu Sans";
/// Pixels of a PNG for a pixel of the figure.
const SHARPNESS: f32 = 2.0;
/// What a PNG of this program says of itself, as its text chunk has it.
const SOFTWARE: &[u8] = b"Software\0warpo report";
/// A file begins with its mark, or has it in so many bytes.
const HEAD: usize = 1024;

/// Writes the page about these runs.
///
/// # Errors
/// There are more runs than colours, something else is at `path`, or it cannot be written.
pub fn write_page(path: &Path, runs: &[History]) -> Result<()> {
    check(runs)?;
    check_replaceable(path, super::MARK.as_bytes())?;
    let page = page::page(runs)?;
    files::write_whole(path, |file| Ok(file.write_all(page.as_bytes())?))
}

/// Writes each figure as SVG into a folder, which is made if it is not there. Says how many.
///
/// # Errors
/// As [`write_page`].
pub fn write_svgs(folder: &Path, runs: &[History]) -> Result<usize> {
    write_all(folder, runs, "svg", super::MARK.as_bytes(), |figure| Ok(figure.file().into_bytes()))
}

/// The same as PNG.
///
/// # Errors
/// As [`write_page`].
pub fn write_pngs(folder: &Path, runs: &[History]) -> Result<usize> {
    let options = options();
    write_all(folder, runs, "png", SOFTWARE, |figure| png(&figure.file(), &options))
}

fn check(runs: &[History]) -> Result<()> {
    let (given, most) = (runs.len(), RUNS.len());
    ensure!(given <= most, "{given} runs: figures have colours for {most}: name {most} runs or fewer");
    Ok(())
}

fn write_all(
    folder: &Path,
    runs: &[History],
    end: &str,
    mark: &[u8],
    bytes: impl Fn(&Figure) -> Result<Vec<u8>>,
) -> Result<usize> {
    check(runs)?;
    let panels = panels(runs).0;
    let path = |file: &str| -> PathBuf { folder.join(format!("{file}.{end}")) };
    panels.iter().try_for_each(|panel| check_replaceable(&path(&panel.file), mark))?;
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    for panel in &panels {
        let bytes = bytes(&Figure::draw(panel, runs, true)?)?;
        files::write_whole(&path(&panel.file), |file| Ok(file.write_all(&bytes)?))?;
    }
    Ok(panels.len())
}

/// Refuses to replace what this program did not write.
fn check_replaceable(path: &Path, mark: &[u8]) -> Result<()> {
    let shown = path.display();
    let mut head = Vec::new();
    match File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.with_context(|| format!("{shown}: cannot be replaced"))?,
    };
    let ours = head.windows(mark.len()).any(|bytes| bytes == mark);
    ensure!(ours, "{shown}: is there already and no report of warpo: move it away or name another");
    Ok(())
}

fn options() -> Options<'static> {
    let mut fonts = Database::new();
    fonts.load_font_data(FONT.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    Options { fontdb: Arc::new(fonts), font_family: FAMILY.into(), ..Options::default() }
}

fn png(svg: &str, options: &Options) -> Result<Vec<u8>> {
    let tree = Tree::from_str(svg, options).context("a figure cannot be drawn as PNG")?;
    let size = tree.size().to_int_size();
    let size = size.scale_by(SHARPNESS).context("a figure without an extent")?;
    let mut picture = Pixmap::new(size.width(), size.height()).context("a figure that is too large")?;
    resvg::render(&tree, Transform::from_scale(SHARPNESS, SHARPNESS), &mut picture.as_mut());
    Ok(signed(&picture.encode_png()?))
}

/// A PNG with a text chunk that says what wrote it, behind the header (PNG specification, 5.3 and 11.3.4.3).
fn signed(png: &[u8]) -> Vec<u8> {
    // The signature; of the header its length, name, thirteen bytes and sum.
    let (before, after) = png.split_at((8 + 4 + 4 + 13 + 4).min(png.len()));
    let mut chunk = b"tEXt".to_vec();
    chunk.extend_from_slice(SOFTWARE);
    let sum = Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(&chunk);
    [before, &(SOFTWARE.len() as u32).to_be_bytes(), &chunk, &sum.to_be_bytes(), after].concat()
}
