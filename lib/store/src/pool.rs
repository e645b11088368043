//! Byte buffers that are used again: fresh ones of a block's size make the allocator map and fault each time.
//!
//! Used by the store's reads and by the peer driver for blocks from the wire. Knows nothing of what the bytes mean.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lock;

/// The smallest buffer, and the unit the limit is counted in.
const UNIT_BYTES: usize = 4096;
/// Buffers come in powers of two from 4 KiB to 4 MiB, the longest piece.
const CLASSES: usize = 11;

/// A pool of buffers with a limit on the bytes handed out. Cloning gives a handle on the same pool.
///
/// Memory held: at most the limit, of which at most a quarter is idle.
#[derive(Clone)]
pub struct BufferPool(Arc<Inner>);

struct Inner {
    permits: Arc<Semaphore>,
    units: u32,
    idle: Mutex<Idle>,
}

struct Idle {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
    bytes_max: usize,
}

/// A buffer of exactly the length asked for. Its first content is arbitrary; it returns to the pool when dropped, or
/// when the last [`Bytes`] made from it is.
pub struct PooledBuf {
    memory: Vec<u8>,
    length: usize,
    pool: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl BufferPool {
    /// Makes a pool that hands out at most so many bytes at a time (counted in powers of two from 4 KiB).
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let units = u32::try_from(bytes_max / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 4);
        let idle = Idle { classes: std::array::from_fn(|_| Vec::new()), bytes: 0, bytes_max: bytes_max / 4 };
        let permits = Arc::new(Semaphore::new(units as usize));
        Self(Arc::new(Inner { permits, units, idle: Mutex::new(idle) }))
    }

    /// Gives a buffer of `length` bytes, waiting in line until the limit allows it. One longer than the whole limit
    /// waits until it is the only one.
    pub async fn get(&self, length: usize) -> PooledBuf {
        let capacity = length.next_power_of_two().max(UNIT_BYTES);
        let units = u32::try_from(capacity / UNIT_BYTES).unwrap_or(u32::MAX).min(self.0.units);
        let permit = self.0.permits.clone().acquire_many_owned(units).await;
        let _permit = permit.expect("the pool never closes its semaphore");
        let recycled = lock(&self.0.idle).take(capacity, self.0.units as usize * UNIT_BYTES - self.used_bytes());
        let memory = recycled.unwrap_or_else(|| vec![0; capacity]);
        PooledBuf { memory, length, pool: self.0.clone(), _permit }
    }

    /// How many bytes are handed out now.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        (self.0.units as usize - self.0.permits.available_permits()) * UNIT_BYTES
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} of {} bytes)", self.used_bytes(), self.0.units as usize * UNIT_BYTES)
    }
}

impl Idle {
    /// Gives a buffer that was used before, or frees others until no more than `room` are idle.
    fn take(&mut self, capacity: usize, room: usize) -> Option<Vec<u8>> {
        if let Some(memory) = self.classes.get_mut(class(capacity)).and_then(Vec::pop) {
            self.bytes -= memory.len();
            return Some(memory);
        }
        for list in &mut self.classes {
            while self.bytes > room
                && let Some(memory) = list.pop()
            {
                self.bytes -= memory.len();
            }
        }
        None
    }

    fn give(&mut self, memory: Vec<u8>) {
        if self.bytes + memory.len() > self.bytes_max {
            return;
        }
        if let Some(list) = self.classes.get_mut(class(memory.len())) {
            self.bytes += memory.len();
            list.push(memory);
        }
    }
}

fn class(capacity: usize) -> usize {
    (capacity / UNIT_BYTES).trailing_zeros() as usize
}

impl PooledBuf {
    /// Cuts the buffer to its first `length` bytes; does nothing when it is shorter.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes the buffer read-only and shareable without copying.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.length]
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        lock(&self.pool.idle).give(std::mem::take(&mut self.memory));
    }
}

impl fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PooledBuf({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_ready<F: Future>(future: F) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn a_buffer_returns_when_the_last_slice_of_it_is_dropped() {
        let pool = BufferPool::new(64 * 1024);
        let mut buffer = pool.get(10_000).await;
        assert_eq!(buffer.len(), 10_000);
        buffer[..2].copy_from_slice(b"ab");
        let bytes = buffer.freeze();
        let slice = bytes.slice(1..2);
        drop(bytes);
        assert_eq!((&slice[..], pool.used_bytes()), (&b"b"[..], 16_384));
        drop(slice);
        assert_eq!(pool.used_bytes(), 0);
        assert_eq!(&pool.get(16_384).await[..2], b"ab", "the same memory is used again");
    }

    #[tokio::test]
    async fn the_limit_makes_the_next_one_wait() {
        let pool = BufferPool::new(32 * 1024);
        let held = (pool.get(16_000).await, pool.get(16_000).await);
        assert!(!is_ready(pool.get(1)));
        drop(held.0);
        assert!(is_ready(pool.get(1)));
        assert!(!is_ready(pool.get(1 << 20)), "longer than the limit: not before it is alone");
        drop(held.1);
        assert_eq!(pool.get(1 << 20).await.len(), 1 << 20);
    }

    #[tokio::test]
    async fn idle_memory_is_a_quarter_of_the_limit_at_most() {
        let pool = BufferPool::new(64 * 1024);
        let held = [pool.get(8192).await, pool.get(8192).await, pool.get(8192).await, pool.get(4096).await];
        drop(held);
        assert_eq!(lock(&pool.0.idle).bytes, 16_384);
    }

    #[tokio::test]
    async fn idle_memory_makes_room_for_buffers_of_another_length() {
        let pool = BufferPool::new(64 * 1024);
        drop([pool.get(4096).await, pool.get(4096).await, pool.get(8192).await]);
        assert_eq!(lock(&pool.0.idle).bytes, 16_384);
        let _most = (pool.get(32 * 1024).await, pool.get(16 * 1024).await);
        assert_eq!(lock(&pool.0.idle).bytes, 16_384, "48 KiB are handed out");
        let _one_more = pool.get(8192).await;
        let _and_another = pool.get(8192).await;
        assert_eq!(lock(&pool.0.idle).bytes, 0);
    }

    #[tokio::test]
    async fn a_truncated_buffer_freezes_to_what_is_left() {
        let pool = BufferPool::new(64 * 1024);
        let mut buffer = pool.get(100).await;
        buffer.truncate(7);
        buffer.truncate(50);
        assert_eq!(buffer.freeze().len(), 7);
    }
}
