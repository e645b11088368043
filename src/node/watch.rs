//! `shoal node watch`: the runtimes ask the agent first for as long as it answers.
//!
//! An agent that is gone refuses connections, and runtimes go on at once; one that hangs would cost every request of theirs a
//! time-out. This is a process of its own, so that it outlives an agent that is broken.

use std::time::Duration;

use anyhow::Result;
use shoal_kit::shutdown;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::mirror::Mirror;
use super::{WishArgs, change, say};
use crate::http::get;

/// How often the agent is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many times in a row without an answer, and it is broken.
const FAILURES_MAX: u32 = 3;
/// How often the files are looked at again: runtimes write some of them anew when they start, and registries are added. As long,
/// too, nothing is tried after it failed.
const REFRESH: Duration = Duration::from_secs(60);

/// Watches until it is told to end, and then puts everything back.
///
/// # Errors
/// When it cannot begin, or everything not be put back.
pub(super) fn run(wish: &WishArgs) -> Result<()> {
    crate::block_on(async {
        let shutdown = shutdown::on_signal()?;
        let mut watch = Watch::default();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let Some(remove) = watch.heard(answers(&wish.mirror).await, Instant::now()) else { continue };
            if remove {
                say(format!("{} does not answer: runtimes go to the registries themselves", wish.mirror));
            }
            match change(wish, remove) {
                Ok(_) => watch.done = Some((remove, Instant::now())),
                Err(error) => {
                    say(format!("cannot change the runtimes' configuration: {error:#}"));
                    ticks.reset_after(REFRESH);
                }
            }
        }
        change(wish, true).map(drop)
    })?
}

/// Whether the agent answers in time.
async fn answers(mirror: &Mirror) -> bool {
    let answer = timeout(PATIENCE, get(mirror, "/v2/")).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.is_of_shoal()))
}

/// What was heard of the agent, and done about it.
#[derive(Debug, Default)]
struct Watch {
    /// Failures in a row.
    failures: u32,
    /// Whether everything was put back last, and when; nothing is done yet.
    done: Option<(bool, Instant)>,
}

impl Watch {
    /// Takes in whether the agent answered; says whether everything has to be put back, or the mirror to be written.
    fn heard(&mut self, answers: bool, now: Instant) -> Option<bool> {
        self.failures = if answers { 0 } else { self.failures.saturating_add(1) };
        let remove = match (answers, self.done) {
            (true, Some((false, at))) if now < at + REFRESH => return None,
            (true, _) => false,
            (false, _) if self.failures < FAILURES_MAX => return None,
            (false, _) => true,
        };
        (self.done.is_none_or(|(removed, _)| !(removed && remove))).then_some(remove)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done at each second: `w` for the mirror written, `r` for all put back.
    fn watched(answers: &str) -> String {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let seconds = answers.chars().zip(0u32..);
        let done = seconds.map(|(answer, second)| {
            let now = start + Duration::from_secs(1) * second;
            let heard = watch.heard(answer == '+', now);
            watch.done = heard.map(|remove| (remove, now)).or(watch.done);
            heard.map_or('.', |remove| if remove { 'r' } else { 'w' })
        });
        done.collect()
    }

    #[test]
    fn an_agent_that_answers_is_asked_first_and_one_that_does_not_is_not() {
        assert_eq!(watched("+++---+++"), "w....rw..");
        assert_eq!(watched("-----+"), "..r..w", "what an earlier run left is put back");
        assert_eq!(watched("+--+--+"), "w......", "one answer missed is no failure");
    }

    #[test]
    fn the_files_are_looked_at_again_every_minute() {
        let done = watched(&"+".repeat(200));
        let at: Vec<_> = done.char_indices().filter(|(_, done)| *done == 'w').map(|(second, _)| second).collect();
        assert_eq!(at, [0, 60, 120, 180]);
    }
}
