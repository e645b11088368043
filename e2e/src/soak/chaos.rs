//! Starts all parts, kills some of them again and again, and brings them back. Whatever ends by itself is told and brought back too.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cast::{Cast, Kind, Life, Part};
use super::journal::Journal;
use crate::process::{Process, tail};

/// From one kill to the next: seven seconds in the mean, so that two parts are down at once at times.
const KILL_EVERY_MS: std::ops::RangeInclusive<u64> = 1_000..=13_000;
/// How long a part stays away.
const AWAY_MS: std::ops::RangeInclusive<u64> = 0..=5_000;
/// How likely a part is asked to end by SIGTERM instead of killed.
const ASKED: f64 = 0.25;
/// How likely a part that was killed has lost its store.
const ROBBED: f64 = 0.2;
/// The longest a part that is asked to end may take.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// How often parts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Who ends parts and starts them.
#[derive(Debug)]
pub(super) struct Chaos<'a> {
    cast: &'a Cast,
    journal: &'a Journal,
    random: StdRng,
    seats: Vec<Seat<'a>>,
    deeds: Deeds,
}

/// What was done, and what happened.
#[derive(Debug, Default)]
pub(super) struct Deeds {
    /// Of each kind: kills, ends by SIGTERM, stores removed.
    pub(super) done: BTreeMap<Kind, [u32; 3]>,
    /// How long each took to end that was asked to, in seconds.
    pub(super) endings: Vec<f64>,
    /// What ended by itself, badly, too late, or did not come back.
    pub(super) broken: Vec<String>,
}

#[derive(Debug)]
struct Seat<'a> {
    part: &'a Part,
    lives: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Runs, until it is killed, asked to end, or ends by itself.
    Up(Process),
    /// Was asked to end at this time.
    Ending(Process, Instant),
    /// Will be started at this time.
    Down(Instant),
}

impl<'a> Chaos<'a> {
    /// Starts all parts.
    pub(super) fn begin(cast: &'a Cast, journal: &'a Journal, seed: u64) -> Result<Self> {
        let start = |part: &'a Part| {
            let process = cast.start(part)?;
            live(part, &process, 0);
            Ok(Seat { part, lives: 1, state: State::Up(process) })
        };
        let seats = cast.parts.iter().map(start).collect::<Result<_>>()?;
        Ok(Self { cast, journal, random: StdRng::seed_from_u64(!seed), seats, deeds: Deeds::default() })
    }

    /// Kills parts until that time, and brings all back.
    pub(super) fn run(&mut self, until: Instant) -> Result<()> {
        let mut next_kill = Instant::now();
        while Instant::now() < until || self.seats.iter().any(|seat| !matches!(seat.state, State::Up(_))) {
            if Instant::now() >= next_kill && Instant::now() < until {
                self.kill_one()?;
                next_kill += Duration::from_millis(self.random.random_range(KILL_EVERY_MS));
            }
            for index in 0..self.seats.len() {
                self.see_to(index)?;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    pub(super) fn deeds(&self) -> &Deeds {
        &self.deeds
    }

    fn kill_one(&mut self) -> Result<()> {
        let can = |seat: &Seat<'_>| !seat.part.spared && matches!(seat.state, State::Up(_));
        let candidates = (0..self.seats.len()).filter(|index| can(&self.seats[*index])).collect::<Vec<_>>();
        if candidates.is_empty() {
            return Ok(());
        }
        let index = candidates[self.random.random_range(0..candidates.len())];
        let (asked, away) = (self.random.random_bool(ASKED), self.random.random_range(AWAY_MS));
        let part = self.seats[index].part;
        // What it has counted is lost else.
        if let Err(error) = part.ask() {
            self.journal.note(format_args!("{part} does not say what it counts: {error:#}"));
        }
        let seat = &mut self.seats[index];
        let now = Instant::now();
        let state = std::mem::replace(&mut seat.state, State::Down(now + Duration::from_millis(away)));
        let State::Up(mut process) = state else { return Ok(()) };
        part.set_life(None);
        let [killed, ended, robbed] = self.deeds.done.entry(part.kind).or_default();
        if asked {
            *ended += 1;
            self.journal.note(format_args!("SIGTERM {part}"));
            process.terminate()?;
            seat.state = State::Ending(process, now);
            return Ok(());
        }
        *killed += 1;
        self.journal.note(format_args!("kill -9 {part}, back in {away} ms"));
        process.kill_dash_9()?;
        if part.kind != Kind::Tracker && self.random.random_bool(ROBBED) {
            *robbed += 1;
            self.journal.note(format_args!("its store is removed"));
            fs::remove_dir_all(part.store())?;
        }
        Ok(())
    }

    fn see_to(&mut self, index: usize) -> Result<()> {
        let (seat, now) = (&mut self.seats[index], Instant::now());
        let part = seat.part;
        match &mut seat.state {
            State::Up(process) => {
                if let Some(status) = process.ended()? {
                    let log = tail(process.log());
                    part.set_life(None);
                    seat.state = State::Down(now + Duration::from_secs(1));
                    self.broke(format!("{part} ended by itself, {status}:\n{log}"));
                }
            }
            State::Ending(process, since) => {
                let taken = now - *since;
                match process.ended()? {
                    None if taken < END_TIMEOUT => {}
                    None => {
                        process.kill_dash_9()?;
                        seat.state = State::Down(now);
                        self.broke(format!("{part} has not ended {taken:?} after SIGTERM"));
                    }
                    Some(status) => {
                        seat.state = State::Down(now + Duration::from_millis(self.random.random_range(AWAY_MS)));
                        self.ended(part, status, taken);
                    }
                }
            }
            State::Down(until) if now >= *until => match self.cast.start(part) {
                Ok(process) => {
                    live(part, &process, seat.lives);
                    seat.lives += 1;
                    seat.state = State::Up(process);
                    self.journal.note(format_args!("{part} is back after {:.1} s", now.elapsed().as_secs_f64()));
                }
                Err(error) => {
                    seat.state = State::Down(now + Duration::from_secs(5));
                    self.broke(format!("{part} does not start: {error:#}"));
                }
            },
            State::Down(_) => {}
        }
        Ok(())
    }

    fn ended(&mut self, part: &Part, status: ExitStatus, taken: Duration) {
        self.journal.note(format_args!("{part} ended after {:.1} s, {status}", taken.as_secs_f64()));
        self.deeds.endings.push(taken.as_secs_f64());
        if !status.success() {
            self.broke(format!("{part} ended badly after SIGTERM, {status}"));
        }
    }

    fn broke(&mut self, what: String) {
        self.journal.say(format_args!("{what}"));
        self.deeds.broken.push(what);
    }
}

/// Tells the others of a process.
fn live(part: &Part, process: &Process, number: u32) {
    part.set_life(process.pid_on_node().map(|pid| Life { pid, since: Instant::now(), number }));
}
