//! What a watch tells of a kind of objects, without the watch's own states.

use futures_util::stream::{BoxStream, StreamExt as _};
use kube::runtime::{WatchStreamExt as _, watcher};

/// What has become of the objects watched.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<T> {
    /// These are all there are, at the beginning or after a break.
    All(Vec<T>),
    /// One that is new or has changed.
    Set(T),
    /// One that is gone.
    Gone(T),
}

/// Turns a watch's events into changes, of which `seen` takes what is of interest. While the API server is away nothing comes; it
/// is asked again with back-off, and the log says why.
pub(crate) fn changes<K, T, F>(
    events: impl futures_util::Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
    seen: F,
) -> BoxStream<'static, Change<T>>
where
    K: Send + 'static,
    T: Send + 'static,
    F: Fn(K) -> T + Send + 'static,
{
    // A list that is still arriving; the old one stands until it is whole.
    let mut arriving = Vec::new();
    let changes = events.default_backoff().filter_map(move |event| {
        let change = match event {
            Ok(watcher::Event::Init) => {
                arriving.clear();
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                arriving.push(seen(object));
                None
            }
            Ok(watcher::Event::InitDone) => Some(Change::All(std::mem::take(&mut arriving))),
            Ok(watcher::Event::Apply(object)) => Some(Change::Set(seen(object))),
            Ok(watcher::Event::Delete(object)) => Some(Change::Gone(seen(object))),
            Err(error) => {
                tracing::warn!(
                    what,
                    error = &error as &dyn std::error::Error,
                    "cannot watch what the API server keeps"
                );
                None
            }
        };
        std::future::ready(change)
    });
    changes.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[tokio::test(start_paused = true)]
    async fn a_list_is_told_when_it_is_whole_and_never_in_part() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let events = [Init, InitApply(1), Init, InitApply(2), InitApply(3), InitDone, Apply(4), Delete(2), Init];
        let told: Vec<_> = changes(stream::iter(events.map(Ok)), "numbers", |n| 10 * n).collect().await;
        assert_eq!(told, [Change::All(vec![20, 30]), Change::Set(40), Change::Gone(20)]);
    }
}
