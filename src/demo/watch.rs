//! Live progress: a bar for each node while it pulls.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;

/// How often bars are drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bars that follow the agents until they are stopped.
pub(super) struct Bars {
    stop: CancellationToken,
    drawing: JoinHandle<()>,
}

impl Bars {
    /// Starts drawing to stderr; nothing is drawn where that is no terminal, or when told to be quiet.
    pub(super) fn start(cluster: &Cluster, image_bytes: u64, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template("{prefix:>7} {bar:40} {percent:>3}%  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars: Vec<ProgressBar> = (1..=cluster.agents.len())
            .map(|node| {
                let bar = all.add(ProgressBar::new(image_bytes).with_style(style.clone()));
                bar.set_prefix(format!("node {node}"));
                bar
            })
            .collect();
        let sources: Vec<_> = cluster.agents.iter().map(shoal_agent::Running::watch).collect();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let drawing = tokio::spawn(async move {
            let mut interval = tokio::time::interval(INTERVAL);
            while stopped.run_until_cancelled(interval.tick()).await.is_some() {
                for (bar, source) in bars.iter().zip(&sources) {
                    let status = source.status();
                    let received = status.received;
                    let peers = received.same_zone + received.other_zone;
                    bar.set_position((peers + received.origin + received.upstream).min(image_bytes));
                    bar.set_message(format!("{} from peers, {} from the origin", mib(peers), mib(received.origin)));
                }
            }
            bars.iter().for_each(ProgressBar::finish_and_clear);
        });
        Self { stop, drawing }
    }

    /// Takes the bars away.
    pub(super) fn stop(self) {
        self.stop.cancel();
        drop(self.drawing);
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
