//! The scrub: committed blobs are read again, now and then, so that what has rotted is found before somebody asks for it.
//!
//! Run by the agent and the origin. It keeps out of the way of who is served: one thread of the lowest priority, so many bytes
//! a second, and no page stays in memory that was not there. It pins nothing and does not count as a use.

use std::fs::{File, FileTimes};
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, fadvise};
use rustix::process::setpriority_process;
use shoal_meta::{Digest, Metainfo, PieceIndex};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::checks::Checks;
use crate::store::Shared;
use crate::{blob, lock, pieces_file, whole};

/// Bytes read in a second: 50 GiB take less than two hours, and a disk is hardly busy with it.
const RATE: u32 = 8 << 20;
/// A blob that was checked less long ago is left alone.
const CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How long to wait when there is nothing to check.
const IDLE: Duration = Duration::from_secs(600);
/// The lowest priority of a thread, for the processor and, as the kernel derives it from this, for the disk.
const NICE: i32 = 19;

/// Checks what is due, for ever.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let worker = match Worker::start() {
        Ok(worker) => worker,
        Err(error) => return warn!(%error, "blobs are not checked for rot: no thread for it"),
    };
    loop {
        match due(shared) {
            Some((digest, checks)) => scrub(shared, &worker, &digest, &checks).await,
            None => sleep(IDLE).await,
        }
    }
}

/// The blob to check next, if it is time.
fn due(shared: &Shared) -> Option<(Digest, Arc<Checks>)> {
    let (digest, checked, checks) = lock(&shared.index).checked_first()?;
    let age = (shared.host.clock)().duration_since(checked);
    // A clock that was set back counts as due.
    age.map_or(true, |age| age >= CHECK_INTERVAL).then_some((digest, checks))
}

/// Checks a blob piece by piece, as long as it is in the store.
async fn scrub(shared: &Arc<Shared>, worker: &Worker, digest: &Digest, checks: &Arc<Checks>) {
    let (dir, name) = (shared.layout.blob_dir(digest), *digest);
    match worker.run(move || Files::open(&dir, &name)).await {
        Ok(files) => {
            let files = Arc::new(files);
            for piece in files.metainfo.geometry().pieces() {
                if !lock(&shared.index).is_committed_as(digest, checks) {
                    return;
                }
                let due = Instant::now() + Duration::from_secs(1) * files.metainfo.geometry().length_of(piece) / RATE;
                let checked = files.clone();
                if let Err(error) = worker.run(move || checked.check(piece)).await {
                    debug!(%digest, piece = piece.get(), %error, "a piece does not pass");
                    let (store, checks, digest) = (shared.clone(), checks.clone(), *digest);
                    let drop = move || store.drop_if_damaged(&digest, &checks, piece, &error);
                    // It fails only while the runtime shuts down.
                    let _ = shared.jobs.changes.run(drop).await;
                }
                sleep_until(due).await;
            }
            let now = (shared.host.clock)();
            if let Err(error) = worker.run(move || files.note(now)).await {
                debug!(%digest, %error, "cannot note that a blob was checked");
            }
        }
        // Who opens it the usual way takes it out when it is damaged.
        Err(_) => drop(shared.open_blob(digest, checks.clone())),
    }
    lock(&shared.index).was_checked(digest, checks, (shared.host.clock)());
}

/// The files of a blob, open to be checked.
struct Files {
    metainfo: Metainfo,
    data: File,
    /// Its time of change is when the blob was checked (docs/adr/0003).
    pieces: File,
}

impl Files {
    fn open(dir: &Path, digest: &Digest) -> io::Result<Self> {
        let pieces = File::open(dir.join("pieces"))?;
        let metainfo = pieces_file::read_complete(&pieces, digest)?;
        let data = File::open(dir.join("data"))?;
        // What is read ahead would stay in memory. A file system that knows no such advice reads ahead all the same.
        let _ = fadvise(&data, 0, None, Advice::Random);
        Ok(Self { metainfo, data, pieces })
    }

    fn check(&self, piece: PieceIndex) -> io::Result<()> {
        let before = self.metainfo.hash_before(piece).expect("the hashes of a blob are complete");
        let hash = whole::piece_hash_aside(&self.data, self.metainfo.geometry(), piece, before)?;
        blob::compare(&self.metainfo, piece, hash)
    }

    fn note(&self, now: SystemTime) -> io::Result<()> {
        self.pieces.set_times(FileTimes::new().set_modified(now))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread of the lowest priority; it ends when this is dropped.
struct Worker(mpsc::Sender<Job>);

impl Worker {
    fn start() -> io::Result<Self> {
        let (jobs, given) = mpsc::channel::<Job>();
        thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            // On Linux of this thread alone. Without it the scrub is as well, and a little less polite.
            let _ = setpriority_process(None, NICE);
            given.into_iter().for_each(|job| job());
        })?;
        Ok(Self(jobs))
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        // Nobody waits any more when the scrub was dropped.
        let job = Box::new(move || drop(done.send(job())));
        self.0.send(job).map_err(|_ended| io::Error::other("the scrub's thread has ended"))?;
        answer.await.map_err(io::Error::other)?
    }
}
