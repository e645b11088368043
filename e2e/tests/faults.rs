//! Faults of the upstream and of Shoal's own parts during real pulls, each beside the same pull without Shoal: it ends as well
//! or better, and soon. Prints the table of docs/faults.md.

mod parts;
mod table;
mod upstream;

use shoal_e2e::harness::Test;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "whatever_the_upstream_does_containerd_is_no_worse_off_with_shoal",
        needs: &["containerd", "ctr"],
        run: upstream::containerd,
    },
    Test {
        name: "whatever_the_upstream_does_dockerd_is_no_worse_off_with_shoal",
        needs: &["dockerd", "docker"],
        run: upstream::dockerd,
    },
    Test {
        name: "whatever_part_of_shoal_fails_containerd_is_no_worse_off",
        needs: &["containerd", "ctr"],
        run: parts::containerd,
    },
];
