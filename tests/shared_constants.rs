//! Numbers that Rust and the kernels' sources share are the same in both.

use spts::ggml::{block_lists, cpu_attention, kernels};

/// What stands behind `name =` or `#define name` in a source of vendor/ggml-sys/src, which defines it once.
fn value(source: &str, name: &str) -> String {
    let path = format!("{}/vendor/ggml-sys/src/{source}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a source");
    let defined = |line: &str| -> Option<String> {
        let (before, after) = line.split_once(name)?;
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        if before.ends_with(is_part) || after.starts_with(is_part) {
            return None;
        }
        let value = match before.trim_end().ends_with("#define") {
            true => after,
            false => after.trim_start().strip_prefix('=').filter(|value| !value.starts_with('='))?,
        };
        Some(value.trim().trim_end_matches([';', ',']).to_owned())
    };
    let found: Vec<String> = text.lines().filter_map(defined).collect();
    let [value] = &found[..] else { panic!("{source} defines {name} as {found:?}, expected one value") };
    value.clone()
}

#[test]
fn constants_of_the_kernels_sources() {
    assert_eq!(value("wide_weights.cu", "BUFFERS"), kernels::WIDE_WEIGHTS.to_string());
    assert_eq!(value("selection.cu", "LOGITS"), format!("{} << 20", (kernels::PROBE_LOGITS / 4) >> 20));
    assert_eq!(value("cpu/attention.h", "SPTS_CPU_ATTENTION_MAX_HEAD"), cpu_attention::MAX_HEAD.to_string());
    assert_eq!(value("cpu/attention.h", "SPTS_CPU_ATTENTION_FIRST"), cpu_attention::FIRST_ARGUMENT.to_string());
    assert_eq!(value("cpu/block_lists.h", "SPTS_CPU_BLOCK_LISTS_FIRST"), block_lists::FIRST_ARGUMENT.to_string());
    assert_eq!(value("blocks.h", "SPTS_BLOCK"), block_lists::BLOCK.to_string());
    assert_eq!(value("blocks.h", "SPTS_BLOCK_STRIDE"), block_lists::STRIDE.to_string());
    assert_eq!(value("blocks.h", "SPTS_BLOCKS_BEHIND"), block_lists::BLOCKS_BEHIND.to_string());
}
