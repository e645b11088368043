//! A disk as a power cut leaves it: what was synced is there; of the rest each sector and each name may be as it was, as it is, or
//! lost, whatever came first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

/// The unit that a disk writes whole, in bytes.
const SECTOR: usize = 512;

/// What a file or directory is, whatever it is called: an inode, and when it was made, as inodes are used again.
type Id = (u64, Option<SystemTime>);

/// Files and directories, by what they are.
#[derive(Clone, Default)]
pub(super) struct View {
    files: BTreeMap<Id, Vec<u8>>,
    dirs: BTreeMap<Id, BTreeMap<String, Id>>,
}

/// A choice among what may have happened.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn is_heads(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn id(path: &Path) -> Id {
    let about = fs::metadata(path).unwrap();
    (about.ino(), about.created().ok())
}

impl View {
    /// Everything as running programs see it.
    pub(super) fn of(path: &Path) -> Self {
        let mut view = Self::default();
        view.add(path, true);
        view
    }

    /// What is at `path` is on the disk now: a file's bytes, or a directory's names.
    pub(super) fn add_synced(&mut self, path: &Path) {
        self.add(path, false);
    }

    fn add(&mut self, path: &Path, all: bool) {
        if path.is_file() {
            self.files.insert(id(path), fs::read(path).unwrap());
            return;
        }
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            if all {
                self.add(&entry.path(), true);
            }
            names.insert(entry.file_name().into_string().unwrap(), id(&entry.path()));
        }
        self.dirs.insert(id(path), names);
    }

    /// What of `root` may be left of this, of which `synced` is on the disk.
    pub(super) fn cut(&self, synced: &Self, root: Id, to: &Path, dice: &mut Dice) {
        fs::create_dir_all(to).unwrap();
        let (none, none_too) = (BTreeMap::new(), BTreeMap::new());
        let now = self.dirs.get(&root).unwrap_or(&none);
        let then = synced.dirs.get(&root).unwrap_or(&none_too);
        for name in now.keys().chain(then.keys()).collect::<BTreeSet<_>>() {
            let is_synced = now.get(name) == then.get(name);
            let kept = if is_synced || dice.is_heads() { now.get(name) } else { then.get(name) };
            let Some(kept) = kept else { continue };
            let to = to.join(name);
            match self.dirs.contains_key(kept) || synced.dirs.contains_key(kept) {
                true => self.cut(synced, *kept, &to, dice),
                false => fs::write(to, self.torn(synced, kept, dice)).unwrap(),
            }
        }
    }

    fn torn(&self, synced: &Self, file: &Id, dice: &mut Dice) -> Vec<u8> {
        let then = synced.files.get(file);
        let Some(now) = self.files.get(file) else { return then.cloned().unwrap_or_default() };
        let then = then.map_or(&[][..], Vec::as_slice);
        if now == then {
            return now.clone();
        }
        let length = match dice.below(4) {
            0 => then.len(),
            1 if now.len() > then.len() => then.len() + dice.below((now.len() - then.len()) as u64) as usize,
            _ => now.len(),
        };
        let mut out = vec![0; length];
        for (number, sector) in out.chunks_mut(SECTOR).enumerate() {
            // Of a sector that was never written before, nothing may have come: it is a hole.
            let from = if dice.is_heads() { now } else { then };
            let bytes = from.get(number * SECTOR..).unwrap_or_default();
            let length = sector.len().min(bytes.len());
            sector[..length].copy_from_slice(&bytes[..length]);
        }
        out
    }
}

/// What a directory is.
pub(super) fn root_of(path: &Path) -> Id {
    id(path)
}
