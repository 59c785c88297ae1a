//! Any bytes at all are either refused with a one-line error, or a file whose every part can be read and which
//! survives being written and read again.

#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use spts::gguf::{Gguf, GgufWriter};

fuzz_target!(|data: &[u8]| {
    match Gguf::from_bytes(data.to_vec(), "fuzz.gguf") {
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("fuzz.gguf: "), "{message:?}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
        Ok(gguf) => {
            use_everything(&gguf);
            let first = write(&gguf);
            let again = Gguf::from_bytes(first.clone(), "again.gguf").expect("own output is valid");
            // Bytes, not values: a NaN is not equal to itself.
            assert_eq!(first, write(&again));
        }
    }
});

fn use_everything(gguf: &Gguf) {
    for (key, value) in gguf.metadata() {
        assert!(!value.to_string().contains('\n'));
        let _ = gguf.u32(key).map_err(|e| e.to_string());
        let _ = gguf.u64(key).map_err(|e| e.to_string());
        let _ = gguf.f32(key).map_err(|e| e.to_string());
        let _ = gguf.bool(key).map_err(|e| e.to_string());
        let _ = gguf.str(key).map_err(|e| e.to_string());
        let _ = gguf.str_array(key).map_err(|e| e.to_string());
        let _ = gguf.i32_array(key).map_err(|e| e.to_string());
        let _ = gguf.f32_array(key).map_err(|e| e.to_string());
        let _ = gguf.u32_array_or_scalar(key).map_err(|e| e.to_string());
    }
    let mut total = 0;
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        let bytes = gguf.tensor_data(tensor);
        assert_eq!(bytes.len() as u64, tensor.nbytes);
        // Every byte is touched, so that an access outside would be seen.
        std::hint::black_box(bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)));
        total += bytes.len();
    }
    assert!(total as u64 <= gguf.n_bytes());
}

fn write(gguf: &Gguf) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone()).expect("read values can be written");
    }
    for t in gguf.tensors() {
        writer.add_tensor_bytes(&t.name, &t.shape, t.ty, gguf.tensor_data(t)).expect("read tensors can be written");
    }
    let mut out = Vec::new();
    writer.write_to(&mut out, "memory", |_, _| Err(io::Error::other("unused"))).expect("memory takes everything");
    out
}
