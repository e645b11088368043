//! How well caps are held: what arrives over what the cap allows, in both directions, over some seconds.

use anyhow::Result;

use crate::blob::Scene;
use crate::receive;
use crate::serve::at;
use crate::server;
use crate::sink::Leecher;
use crate::space::End;
use crate::{Options, table::Sample};

/// Bytes per second.
const RATES: [u64; 2] = [50_000_000, 125_000_000];
/// How long an upload takes; a download takes the whole blob.
const SECONDS: u64 = 6;

/// Prints the figures. To reach: 0.95 to 1.05.
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
pub(crate) fn run(options: &Options) -> Result<()> {
    let scene = Scene::new()?;
    println!("\nCaps: what is carried over what is allowed (to reach: 0.95 to 1.05)");
    for rate in RATES {
        let flag = format!("{}mbit", rate * 8 / 1_000_000);
        let agent = server::agent(&scene, &options.space, &["--upload-rate", &flag])?;
        let bytes = rate * SECONDS;
        let seconds =
            at(&options.space, End::Client, || Leecher::connect(agent.address, &scene.metainfo)?.fetch(bytes))?;
        println!("  upload   {flag:>9}, {seconds:>5.1} s   {:.3}", bytes as f64 / seconds / rate as f64);
    }
    let agent = server::agent(&scene, &options.space, &[])?;
    for rate in RATES {
        let words = [rate.to_string()];
        let words = words.each_ref().map(String::as_str);
        let Sample { bytes, seconds, .. } = receive::node(&scene, &options.space, agent.address, None, &words)?;
        let flag = format!("{}mbit", rate * 8 / 1_000_000);
        println!("  download {flag:>9}, {seconds:>5.1} s   {:.3}", bytes as f64 / seconds / rate as f64);
    }
    Ok(())
}
