//! Broken files and broken sidecars: each error names the file and what is wrong with it.

use half::f16;
use spts::gguf::Gguf;
use spts::method::spts::sidecar::Sidecar;

use crate::runtime::Pair;
use crate::runtime::files::{gguf, refusal, set};
use crate::runtime::proxies::SidecarFile;
use crate::support::gguf::File;
use crate::support::tiny::Tiny;

#[test]
fn errors_name_the_file() {
    let change = |change: fn(&mut File)| {
        let mut file = Tiny::named("llama").build();
        change(&mut file);
        refusal(&file)
    };
    assert!(change(|f| set(f, "tokenizer.ggml.model", "bert")).contains("tokenizer `bert` is not supported"));
    assert!(change(|f| set(f, "tokenizer.ggml.pre", "unheard-of")).contains("`unheard-of` is not supported"));
    assert!(change(|f| f.metadata.retain(|(k, _)| k != "tokenizer.ggml.merges")).contains("tokenizer.ggml.merges"));
    assert!(change(|f| set(f, "tokenizer.chat_template", 1u32)).contains("tokenizer.chat_template"));
    assert!(change(|f| set(f, "llama.block_count", "five")).contains("llama.block_count"));
}

#[test]
fn a_file_cut_anywhere_is_called_truncated() {
    let bytes = Tiny::named("llama").build().to_bytes();
    let whole = gguf(&Tiny::named("llama").build());
    let data = whole.data_offset() as usize;
    let last = whole.tensors().map(|t| whole.tensor_offset(t) + t.nbytes).max().unwrap() as usize;
    // Every place in the header, and some in the data.
    for len in (1..data).chain((data..last).step_by(997)) {
        let Err(e) = Gguf::from_bytes(bytes[..len].to_vec(), "cut.gguf") else { panic!("{len} bytes accepted") };
        let message = e.to_string();
        assert!(message.starts_with("cut.gguf: truncated: "), "{len} bytes: {message}");
        assert!(message.ends_with("download the file again"), "{len} bytes: {message}");
        if len >= data {
            let both = format!("the file has {len} bytes, expected {last}");
            assert!(message.contains(&both), "{len} bytes: {message}");
        }
    }
}

#[test]
fn proxies_that_are_no_numbers_are_refused() {
    let pair = Pair::new(Tiny::named("llama"));
    let good = SidecarFile::for_model(&pair, 8, 4);
    for (layer, tensor, element, value, shown) in [
        (3, "proxy_v_down", 5, f16::NAN, "NaN"),
        (0, "proxy_u_gu", 0, f16::INFINITY, "inf"),
        (4, "proxy_v_gate", 31, f16::NEG_INFINITY, "-inf"),
        (2, "proxy_v_up", 1, f16::NAN, "NaN"),
    ] {
        let (mut bad, name) = (good.clone(), format!("blk.{layer}.{tensor}"));
        bad.tensors.iter_mut().find(|t| t.0 == name).unwrap().2[element] = value;
        let gguf = Gguf::from_bytes(bad.to_bytes(), "bad.spts.gguf").unwrap();
        let message = Sidecar::from_gguf(gguf).expect_err("refused").to_string();
        let expected = format!("tensor '{name}', a proxy of layer {layer}: element {element} is {shown}");
        assert!(message.starts_with("bad.spts.gguf: ") && message.contains(&expected), "{message}");
    }
}
