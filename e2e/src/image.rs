//! Images written as OCI layout directories: realistic ones (slices of this machine's /usr) and ones of random bytes. Made by
//! the tests, pushed by [`crate::registry`]; knows nothing of registries.
//!
//! Every image begins with a layer that holds a static busybox, so it can be run. An image is built once for a checkout and
//! kept: gzip of a realistic one takes some seconds.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";
/// Larger files are left out of realistic layers, so that a layer ends near its length.
const FILE_BYTES_MAX: u64 = 48 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an image is made of.
#[derive(Debug, Clone)]
pub enum Recipe {
    /// A base and slices of /usr: more than 200 MB compressed, over twice as much unpacked.
    Realistic,
    /// A base and layers of random bytes of these lengths, which do not compress. The seed tells images apart.
    Random {
        /// Length of each layer above the base, in MiB.
        layers_mib: Vec<u64>,
        /// Another seed, other bytes.
        seed: u64,
    },
    /// A base and layers of random bytes, each of which is told by its length in bytes and its seed: images share those that are alike.
    Mixed {
        /// The name of the image.
        name: String,
        /// Length in bytes and seed of each layer above the base.
        layers: Vec<(u64, u64)>,
    },
    /// A base and a program, which runs when the image is run.
    Program {
        /// The name of the image.
        name: &'static str,
        /// The program and its arguments.
        entrypoint: Vec<String>,
        /// Files of this machine beside the base, at the paths they have in the image.
        files: Vec<(PathBuf, PathBuf)>,
    },
    /// No image: a blob of random bytes under types of its own (image-spec, "Guidelines for Artifact Usage").
    Artifact {
        /// Length of the blob in MiB.
        mib: u64,
        /// Another seed, other bytes.
        seed: u64,
    },
}

/// Compressed lengths of the layers of a realistic image, in MiB: one big, some middling, some small, as images are.
const REALISTIC_LAYERS_MIB: [u64; 6] = [80, 50, 40, 25, 10, 2];

impl Recipe {
    fn name(&self) -> String {
        match self {
            Self::Realistic => "realistic".to_owned(),
            Self::Random { layers_mib, seed } => {
                let lengths = layers_mib.iter().map(u64::to_string).collect::<Vec<_>>().join("-");
                format!("random-{seed}-{lengths}")
            }
            Self::Mixed { name, .. } => name.clone(),
            Self::Program { name, .. } => (*name).to_owned(),
            Self::Artifact { mib, seed } => format!("artifact-{seed}-{mib}"),
        }
    }
}

/// A blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:<hex>`.
    pub digest: String,
    /// Length in bytes.
    pub length: u64,
}

/// An image in an OCI layout directory.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layout's directory; its one manifest is tagged `latest`.
    pub dir: PathBuf,
    /// The manifest's digest.
    pub digest: String,
    /// The configuration, which registries hold as a blob too.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Image {
    /// Builds the image under `images`, unless it is there.
    ///
    /// # Errors
    /// When busybox is missing or files cannot be read or written.
    pub fn build(images: &Path, recipe: &Recipe) -> Result<Self> {
        let dir = images.join(recipe.name());
        if !dir.join("index.json").exists() {
            let unfinished = images.join(format!("{}.unfinished", recipe.name()));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            write_layout(&unfinished, recipe).with_context(|| format!("build image {}", recipe.name()))?;
            fs::rename(&unfinished, &dir)?;
        }
        Self::open(&dir).with_context(|| format!("image in {}", dir.display()))
    }

    /// All blobs: layers and configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config])
    }

    /// Length of all blobs in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.blobs().map(|blob| blob.length).sum()
    }

    /// The descriptor of its manifest.
    ///
    /// # Errors
    /// When the layout cannot be read.
    pub fn descriptor(&self) -> Result<Value> {
        let length = fs::metadata(blob_path(&self.dir, &self.digest))?.len();
        Ok(json!({ "mediaType": MANIFEST_TYPE, "digest": self.digest, "size": length }))
    }

    /// Writes the layout as one file, in which the image has this reference, as runtimes import it.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn archive(&self, file: &Path, reference: &str) -> Result<()> {
        let mut index: Value = serde_json::from_slice(&fs::read(self.dir.join("index.json"))?)?;
        index["manifests"][0]["annotations"] = json!({ "io.containerd.image.name": reference });
        let mut tar = tar::Builder::new(BufWriter::new(File::create(file)?));
        tar.append_path_with_name(self.dir.join("oci-layout"), "oci-layout")?;
        append_bytes(&mut tar, "index.json", index.to_string().as_bytes())?;
        tar.append_dir_all("blobs", self.dir.join("blobs"))?;
        Ok(tar.into_inner()?.flush()?)
    }

    fn open(dir: &Path) -> Result<Self> {
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
        let digest = blob_of(&index["manifests"][0])?.digest;
        let manifest: Value = serde_json::from_slice(&fs::read(blob_path(dir, &digest))?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let layers = layers.iter().map(blob_of).collect::<Result<Vec<_>>>()?;
        Ok(Self { dir: dir.to_owned(), digest, config: blob_of(&manifest["config"])?, layers })
    }
}

fn blob_of(descriptor: &Value) -> Result<Blob> {
    let digest = descriptor["digest"].as_str().context("descriptor without digest")?.to_owned();
    Ok(Blob { digest, length: descriptor["size"].as_u64().context("descriptor without size")? })
}

fn blob_path(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs").join(digest.replace(':', "/"))
}

fn write_layout(dir: &Path, recipe: &Recipe) -> Result<()> {
    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let manifest = match recipe {
        Recipe::Realistic | Recipe::Random { .. } | Recipe::Mixed { .. } | Recipe::Program { .. } => {
            image_manifest(dir, recipe)?
        }
        Recipe::Artifact { mib, seed } => artifact_manifest(dir, *mib, *seed)?,
    };
    let mut listed = write_json(dir, MANIFEST_TYPE, &manifest)?;
    listed["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(dir.join("index.json"), json!({ "schemaVersion": 2, "manifests": [listed] }).to_string())?;
    Ok(())
}

fn artifact_manifest(dir: &Path, mib: u64, seed: u64) -> Result<Value> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = Vec::new();
    io::Read::take(RandomBytes(&mut random), mib * MIB).read_to_end(&mut bytes)?;
    Ok(json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": "application/vnd.shoal.example.v1",
        "config": write_json(dir, "application/vnd.shoal.example.config.v1+json", &json!({}))?,
        "layers": [write_bytes(dir, "application/vnd.shoal.example.bytes", &bytes)?],
    }))
}

fn image_manifest(dir: &Path, recipe: &Recipe) -> Result<Value> {
    let mut layers = vec![write_layer(dir, Compression::fast(), |tar| append_base(tar, &recipe.name()))?];
    let mut run = json!({ "Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"] });
    match recipe {
        Recipe::Realistic => {
            let mut files = files_of_usr()?.into_iter();
            for mib in REALISTIC_LAYERS_MIB {
                layers.push(write_layer(dir, Compression::fast(), |tar| append_files(tar, &mut files, mib * MIB))?);
            }
        }
        Recipe::Random { layers_mib, seed } => {
            let mut random = StdRng::seed_from_u64(*seed);
            for mib in layers_mib {
                layers.push(write_random(dir, &mut random, &format!("data/{mib}"), mib * MIB)?);
            }
        }
        Recipe::Mixed { layers: drawn, .. } => {
            for (bytes, seed) in drawn {
                let mut random = StdRng::seed_from_u64(*seed);
                layers.push(write_random(dir, &mut random, &format!("data/{seed}"), *bytes)?);
            }
        }
        Recipe::Program { entrypoint, files, .. } => {
            layers.push(write_layer(dir, Compression::fast(), |tar| append_at(tar, files))?);
            run = json!({ "Entrypoint": entrypoint });
        }
        Recipe::Artifact { .. } => {}
    }
    let diff_ids = layers.iter().map(|layer| layer.diff_id.as_str()).collect::<Vec<_>>();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let descriptors = layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>();
    Ok(json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": write_json(dir, "application/vnd.oci.image.config.v1+json", &config)?,
        "layers": descriptors,
    }))
}

fn write_json(dir: &Path, media_type: &str, content: &Value) -> Result<Value> {
    write_bytes(dir, media_type, content.to_string().as_bytes())
}

fn write_bytes(dir: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = format!("sha256:{}", hex(Sha256::digest(bytes).as_slice()));
    fs::write(blob_path(dir, &digest), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

/// A layer as the manifest and the configuration name it.
struct Layer {
    descriptor: Value,
    diff_id: String,
}

type LayerTar = tar::Builder<Hashing<GzEncoder<Hashing<BufWriter<File>>>>>;

fn write_layer(dir: &Path, level: Compression, fill: impl FnOnce(&mut LayerTar) -> Result<()>) -> Result<Layer> {
    let unnamed = dir.join("layer.unfinished");
    let file = Hashing::new(BufWriter::new(File::create(&unnamed)?));
    let mut tar = tar::Builder::new(Hashing::new(GzEncoder::new(file, level)));
    tar.mode(tar::HeaderMode::Deterministic);
    tar.follow_symlinks(false);
    fill(&mut tar)?;
    let unpacked = tar.into_inner()?;
    let diff_id = unpacked.digest();
    let mut packed = unpacked.inner.finish()?;
    packed.flush()?;
    let digest = packed.digest();
    fs::rename(&unnamed, blob_path(dir, &digest))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Ok(Layer { descriptor: json!({ "mediaType": media_type, "digest": digest, "size": packed.written }), diff_id })
}

fn append_base(tar: &mut LayerTar, name: &str) -> Result<()> {
    ensure!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: e2e/install.sh installs it");
    tar.append_path_with_name(BUSYBOX, "bin/busybox")?;
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    for applet in ["sh", "cat", "true"] {
        tar.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
    }
    append_bytes(tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")?;
    append_bytes(tar, "etc/image", name.as_bytes())
}

fn append_at(tar: &mut LayerTar, files: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (source, path) in files {
        // What a link names, and not the link.
        tar.append_path_with_name(source.canonicalize()?, path.strip_prefix("/")?)
            .with_context(|| source.display().to_string())?;
    }
    Ok(())
}

fn append_bytes(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}

/// Writes a layer of one file of random bytes.
fn write_random(dir: &Path, random: &mut StdRng, path: &str, bytes: u64) -> Result<Layer> {
    write_layer(dir, Compression::none(), |tar| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes);
        Ok(tar.append_data(&mut header, path, io::Read::take(RandomBytes(random), bytes))?)
    })
}

/// Appends files until the compressed layer has the wanted length.
fn append_files(tar: &mut LayerTar, files: &mut impl Iterator<Item = PathBuf>, length: u64) -> Result<()> {
    while tar.get_ref().inner.get_ref().written < length {
        let path = files.next().context("/usr of this machine is too small for a realistic image")?;
        tar.append_path_with_name(&path, path.strip_prefix("/")?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Regular files of the system, in the same order every time.
fn files_of_usr() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::from("/usr/share"), PathBuf::from("/usr/lib"), PathBuf::from("/usr/bin")];
    while let Some(directory) = directories.pop() {
        let mut entries = fs::read_dir(&directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata()?.len() <= FILE_BYTES_MAX {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

struct RandomBytes<'a>(&'a mut StdRng);

impl io::Read for RandomBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill_bytes(buffer);
        Ok(buffer.len())
    }
}

/// Passes bytes on, hashing and counting them.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), written: 0 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex(self.hasher.clone().finalize().as_slice()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
