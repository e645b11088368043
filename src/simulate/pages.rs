//! Huge pages for big simulations: ten thousand swarms are some gigabytes that are read all over, and much of the time goes into
//! looking up where their pages are. A fifth less CPU with 4,000 nodes, a tenth at worst.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc reads it once, when a program starts.
const VARIABLE: &str = "GLIBC_TUNABLES";
const HUGE: &str = "glibc.malloc.hugetlb=1";

/// Starts this program anew with an allocator that asks for huge pages, unless the user has tuned it. Comes back when it is
/// tuned or cannot be: then it is only slower.
pub(super) fn ask_for_huge() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let error = Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, HUGE).exec();
    tracing::debug!(%error, "no huge pages");
}
