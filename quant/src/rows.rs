//! Quantizing a tensor's rows in parallel, in order, in bounded memory.

use std::ops::Range;

use rayon::prelude::*;

/// Chunks in flight per thread: enough to even out, few enough to keep memory small.
const CHUNKS_PER_THREAD: usize = 2;

/// Runs `make` over `0..n_rows` in chunks of `rows_per_chunk`, in parallel, and hands the results to
/// `write` in row order, from the calling thread.
///
/// Never more than two chunks per thread are held: a quantized 128256 x 4096 embedding is written
/// from a few megabytes. Rows of GGUF types are independent (blocks never span rows), so the bytes do
/// not depend on the chunk size. `rows_per_chunk` of 0 counts as 1.
///
/// # Errors
/// The first error of `make` or `write` in row order of chunk groups; what was written stays written.
pub fn convert_rows<E: Send>(
    n_rows: usize,
    rows_per_chunk: usize,
    make: impl Fn(Range<usize>) -> Result<Vec<u8>, E> + Sync,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let step = rows_per_chunk.max(1);
    let group = step.saturating_mul(CHUNKS_PER_THREAD * rayon::current_num_threads());
    let mut start = 0;
    while start < n_rows {
        let end = n_rows.min(start.saturating_add(group));
        let parts: Vec<Vec<u8>> = (0..(end - start).div_ceil(step))
            .into_par_iter()
            .map(|i| {
                let first = start + i * step;
                make(first..end.min(first.saturating_add(step)))
            })
            .collect::<Result<_, E>>()?;
        for part in &parts {
            write(part)?;
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_once_and_in_order(n in 0usize..300, step in 0usize..40) {
            let mut out = Vec::new();
            convert_rows(
                n,
                step,
                |r| Ok::<_, ()>(r.flat_map(|i| (i as u32).to_le_bytes()).collect()),
                |bytes| { out.extend_from_slice(bytes); Ok(()) },
            ).unwrap();
            let expected: Vec<u8> = (0..n as u32).flat_map(u32::to_le_bytes).collect();
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn errors_come_through() {
        let made = convert_rows(50, 3, |r| if r.contains(&20) { Err("make") } else { Ok(vec![]) }, |_| Ok(()));
        assert_eq!(made, Err("make"));
        assert_eq!(convert_rows(50, 3, |_| Ok(vec![]), |_| Err("write")), Err("write"));
    }
}
