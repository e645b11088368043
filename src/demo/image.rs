//! An image made of real files: slices of this machine's own, as gzipped tar layers.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use shoal_meta::Hasher;
use shoal_registry::embedded::Layer;

/// How the image's bytes are spread over its layers, from the base up, in sixteenths: a large base and small tops, as images
/// have.
const LAYERS: [u64; 5] = [6, 4, 3, 2, 1];
/// Where files are taken from. Last, this program itself, so that there is always one.
const ROOTS: [&str; 3] = ["/usr/lib", "/usr/bin", "/usr/share"];
/// Files longer than this are cut, so that one file is not a layer.
const FILE_LENGTH_MAX: usize = 16 << 20;

/// Makes layers of about `bytes` in all.
///
/// # Errors
/// When the machine's files cannot be read at all.
pub(super) fn layers(bytes: u64) -> anyhow::Result<Vec<Layer>> {
    let mut files = Files::new();
    let mut layers = Vec::new();
    for share in LAYERS {
        layers.push(layer(&mut files, bytes * share / 16).context("image layer")?);
    }
    Ok(layers)
}

/// Packs files until the layer is as long as it should be.
fn layer(files: &mut Files, bytes: u64) -> anyhow::Result<Layer> {
    let mut archive =
        tar::Builder::new(Tee { hasher: Hasher::sha256(), out: GzEncoder::new(Vec::new(), Compression::fast()) });
    while (archive.get_ref().out.get_ref().len() as u64) < bytes {
        let (path, mut content) = files.next()?;
        content.truncate(FILE_LENGTH_MAX.min(usize::try_from(bytes).unwrap_or(usize::MAX).max(1 << 16)));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, path.trim_start_matches('/'), content.as_slice())?;
    }
    let Tee { hasher, out } = archive.into_inner()?;
    Ok(Layer::gzip(out.finish()?, hasher.finish()))
}

/// Files of this machine, one after the other, from the start again when all were given.
struct Files {
    pending: Vec<PathBuf>,
    round: u32,
}

impl Files {
    fn new() -> Self {
        Self { pending: Vec::new(), round: 0 }
    }

    /// The next readable file: the name it gets in the image, and its content.
    fn next(&mut self) -> io::Result<(String, Vec<u8>)> {
        loop {
            let Some(path) = self.pending.pop() else {
                self.round += 1;
                self.pending.push(std::env::current_exe()?);
                self.pending.extend(ROOTS.iter().rev().map(PathBuf::from));
                continue;
            };
            if let Some(content) = self.visit(&path) {
                let prefix = if self.round > 1 { format!("round{}", self.round) } else { String::new() };
                return Ok((format!("{prefix}{}", path.display()), content));
            }
        }
    }

    /// Reads a file, or queues what is in a directory. Links and what cannot be read are passed over.
    fn visit(&mut self, path: &Path) -> Option<Vec<u8>> {
        let metadata = fs::symlink_metadata(path).ok()?;
        if metadata.is_dir() {
            let mut inside: Vec<_> = fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
            inside.sort_unstable_by(|a, b| b.cmp(a));
            self.pending.extend(inside);
            return None;
        }
        // Paths beyond a tar header's plain name field are passed over: this is a demonstration.
        let usable = metadata.is_file() && metadata.len() > 0 && path.as_os_str().len() < 90;
        usable.then(|| fs::read(path).ok()).flatten()
    }
}

/// Hashes the archive on its way into the compressor: the layer's diff id.
struct Tee {
    hasher: Hasher,
    out: GzEncoder<Vec<u8>>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
