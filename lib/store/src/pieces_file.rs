//! The file `pieces` beside each blob's data: its cut and the piece hashes known, so that metainfo survives a restart.
//!
//! Format (docs/adr/0003): a header of 32 bytes (magic, length, piece length, zero, check over these and the digest),
//! then the hashes of pieces 0, 1, 2… of 32 bytes each, appended as they become known. A torn or zero record ends
//! the list. Called by the layout's scan, by partials and by blobs; knows nothing of the data file.

use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use shoal_meta::{Digest, Geometry, Metainfo, PieceHash};

use crate::host::Host;

const MAGIC: &[u8; 8] = b"SHOALPC2";
const HEADER_BYTES: u64 = 32;
const RECORD_BYTES: usize = 32;

/// The open file of a partial.
pub(crate) struct PiecesFile {
    file: File,
    known: u32,
}

impl PiecesFile {
    /// Creates the file with no hash in it.
    pub(crate) fn create(path: &Path, digest: &Digest, geometry: &Geometry) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(&header(digest, geometry), 0)?;
        Ok(Self { file, known: 0 })
    }

    /// Opens the file of a partial and cuts off what a crash has torn.
    ///
    /// # Errors
    /// `InvalidData` when it is not the file of this digest.
    pub(crate) fn open(path: &Path, digest: &Digest) -> io::Result<(Self, Metainfo)> {
        let file = File::options().read(true).write(true).open(path)?;
        let metainfo = read(&file, digest)?;
        file.set_len(length(metainfo.known()))?;
        Ok((Self { file, known: metainfo.known() }, metainfo))
    }

    /// How many hashes are in the file.
    pub(crate) fn known(&self) -> u32 {
        self.known
    }

    /// Adds the hashes that follow those in the file.
    pub(crate) fn append(&mut self, hashes: &[PieceHash]) -> io::Result<()> {
        let bytes = hashes.iter().flat_map(|hash| hash.0).collect::<Vec<_>>();
        self.file.write_all_at(&bytes, length(self.known))?;
        self.known += u32::try_from(hashes.len()).expect("a metainfo holds at most PIECE_COUNT_MAX hashes");
        Ok(())
    }

    /// Notes when the content was compared with the hashes, and waits until the file is on the disk.
    pub(crate) fn sync(&self, compared: SystemTime, host: &Host, path: &Path) -> io::Result<()> {
        self.file.set_times(FileTimes::new().set_modified(compared))?;
        host.sync(&self.file, path)
    }
}

/// Reads the cut, and tells whether all hashes are there, by the file's size alone.
pub(crate) fn read_geometry(file: &File, digest: &Digest) -> io::Result<(Geometry, bool)> {
    let geometry = read_header(file, digest)?;
    let complete = file.metadata()?.len() == length(geometry.piece_count());
    Ok((geometry, complete))
}

/// Reads the whole file of a committed blob.
///
/// # Errors
/// `InvalidData` when it is not the file of this digest or a hash is missing.
pub(crate) fn read_complete(file: &File, digest: &Digest) -> io::Result<Metainfo> {
    let metainfo = read(file, digest)?;
    if metainfo.is_complete() { Ok(metainfo) } else { Err(invalid("piece hashes are missing")) }
}

fn read(file: &File, digest: &Digest) -> io::Result<Metainfo> {
    let geometry = read_header(file, digest)?;
    let bytes = file.metadata()?.len();
    if bytes > length(geometry.piece_count()) {
        return Err(invalid("there are more hashes than pieces"));
    }
    let records = usize::try_from(bytes - HEADER_BYTES).map_err(|_| invalid("too long"))? / RECORD_BYTES;
    let mut content = vec![0; records * RECORD_BYTES];
    file.read_exact_at(&mut content, HEADER_BYTES)?;
    let (records, _) = content.as_chunks::<RECORD_BYTES>();
    let hashes = records.iter().take_while(|record| **record != [0; RECORD_BYTES]).map(|record| PieceHash(*record));
    let mut metainfo = Metainfo::new(*digest, geometry);
    let hashes = hashes.collect::<Vec<_>>();
    metainfo.extend_published(0, &hashes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(metainfo)
}

fn read_header(file: &File, digest: &Digest) -> io::Result<Geometry> {
    let mut bytes = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof { invalid("the header is torn") } else { error }
    })?;
    let length = u64::from_le_bytes(*bytes[8..].first_chunk().expect("the header has 32 bytes"));
    let piece_length = u32::from_le_bytes(*bytes[16..].first_chunk().expect("the header has 32 bytes"));
    let geometry =
        Geometry::new(length, piece_length).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if bytes == header(digest, &geometry) { Ok(geometry) } else { Err(invalid("the header does not check out")) }
}

fn header(digest: &Digest, geometry: &Geometry) -> [u8; HEADER_BYTES as usize] {
    let mut out = [0; HEADER_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&geometry.length().to_le_bytes());
    out[16..20].copy_from_slice(&geometry.piece_length().to_le_bytes());
    let check = Digest::sha256_of(&[&out[..24], digest.as_bytes()].concat());
    out[24..].copy_from_slice(&check.as_bytes()[..8]);
    out
}

fn length(known: u32) -> u64 {
    HEADER_BYTES + u64::from(known) * RECORD_BYTES as u64
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> (tempfile::TempDir, std::path::PathBuf, Digest, Geometry) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pieces");
        (dir, path, Digest::sha256_of(b"x"), Geometry::new(5 << 14, 1 << 14).unwrap())
    }

    #[test]
    fn hashes_come_back_in_order() {
        let (_dir, path, digest, geometry) = scene();
        let mut file = PiecesFile::create(&path, &digest, &geometry).unwrap();
        file.append(&[PieceHash([1; 32])]).unwrap();
        file.append(&[PieceHash([2; 32]), PieceHash([3; 32])]).unwrap();
        let (reopened, metainfo) = PiecesFile::open(&path, &digest).unwrap();
        assert_eq!(reopened.known(), 3);
        assert_eq!(metainfo.geometry(), geometry);
        assert_eq!(metainfo.hashes(), [PieceHash([1; 32]), PieceHash([2; 32]), PieceHash([3; 32])]);
        assert_eq!(read_complete(&File::open(&path).unwrap(), &digest).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_torn_or_zero_tail_ends_the_list() {
        let (_dir, path, digest, geometry) = scene();
        let mut file = PiecesFile::create(&path, &digest, &geometry).unwrap();
        file.append(&[PieceHash([1; 32]), PieceHash([2; 32])]).unwrap();
        file.file.set_len(length(1) + 20).unwrap();
        assert_eq!(PiecesFile::open(&path, &digest).unwrap().1.known(), 1);
        file.file.set_len(length(3)).unwrap();
        let (mut reopened, metainfo) = PiecesFile::open(&path, &digest).unwrap();
        assert_eq!(metainfo.known(), 1);
        reopened.append(&[PieceHash([2; 32])]).unwrap();
        assert_eq!(PiecesFile::open(&path, &digest).unwrap().1.known(), 2);
    }

    #[test]
    fn a_damaged_header_or_another_blobs_file_is_refused() {
        let (_dir, path, digest, geometry) = scene();
        let file = PiecesFile::create(&path, &digest, &geometry).unwrap();
        let refused = |digest: &Digest| PiecesFile::open(&path, digest).map(|_| ()).unwrap_err().kind();
        assert_eq!(refused(&Digest::sha256_of(b"y")), io::ErrorKind::InvalidData);
        for byte in 0..32 {
            let mut damaged = header(&digest, &geometry);
            damaged[byte] ^= 1;
            file.file.write_all_at(&damaged, 0).unwrap();
            assert_eq!(refused(&digest), io::ErrorKind::InvalidData, "byte {byte}");
        }
        file.file.set_len(31).unwrap();
        assert_eq!(refused(&digest), io::ErrorKind::InvalidData);
        file.file.set_len(0).unwrap();
        file.file.write_all_at(&header(&digest, &geometry), 0).unwrap();
        file.file.set_len(length(6)).unwrap();
        assert_eq!(refused(&digest), io::ErrorKind::InvalidData, "six records for five pieces");
    }
}
