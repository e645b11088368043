//! What is possible: the bounds every time is held against.

/// The optimum for one source and `nodes` receivers of equal rates: M + floor(log2 N) piece times, in seconds
/// (Mundinger, Weber and Weiss, "Optimal scheduling of peer-to-peer file dissemination", 2008).
pub(super) fn optimum(bytes: u64, piece_bytes: u64, nodes: u32, rate: u64) -> f64 {
    let (bytes, piece_bytes, rate) = (to_f64(bytes), to_f64(piece_bytes), to_f64(rate));
    bytes / rate + f64::from(nodes.max(1).ilog2()) * piece_bytes / rate
}

/// Pulling straight from a registry of that rate: max(N·F/us, F/dmin), in seconds.
pub(super) fn direct(bytes: u64, nodes: u32, rate: u64) -> f64 {
    f64::from(nodes.max(1)) * to_f64(bytes) / to_f64(rate)
}

/// For figures in reports.
#[expect(clippy::cast_precision_loss, reason = "reports round far above the precision lost")]
pub(super) fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_those_of_the_papers() {
        // 512 pieces of 256 KiB at 100 Mbit/s to 8 nodes: 515 piece times.
        let piece = 256.0 * 1024.0 / 12.5e6;
        assert!((optimum(128 << 20, 256 << 10, 8, 12_500_000) - 515.0 * piece).abs() < 1e-9);
        assert!((direct(128 << 20, 8, 12_500_000) - 8.0 * 512.0 * piece).abs() < 1e-9);
    }
}
