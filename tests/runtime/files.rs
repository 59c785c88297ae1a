//! Files of models, with something changed: whether they open, what they answer, and why they are refused.

use std::sync::Arc;

use spts::gguf::Gguf;
use spts::{Error, Model, Session};

use crate::support::gguf::{File, Value};
use crate::support::tiny::Tiny;

/// The file as the program reads it.
pub fn gguf(file: &File) -> Gguf {
    Gguf::from_bytes(file.to_bytes(), "model.gguf").expect("a valid file")
}

/// The model of this file.
pub fn open(file: &File) -> Result<Arc<Model>, Error> {
    Model::from_gguf(Arc::new(gguf(file)), super::on_cpu())
}

/// Logits after a prompt, dense.
pub fn logits(file: &File, tokens: &[u32]) -> Vec<f32> {
    let model = open(file).expect("a model");
    super::logits(Session::new(model, super::exact(512)).expect("a session"), tokens)
}

/// Gives a key this value, whether the file has the key or not.
pub fn set(file: &mut File, key: &str, value: impl Into<Value>) {
    file.metadata.retain(|(k, _)| k != key);
    file.set(key, value);
}

/// A file of the model in which a key of its architecture has this value: `key` is what follows the architecture's name.
pub fn with(tiny: &Tiny, key: &str, value: impl Into<Value>) -> File {
    let mut file = tiny.build();
    set(&mut file, &format!("{}.{key}", tiny.arch.name()), value);
    file
}

/// A file of the model that lacks a key of its architecture: `key` is what follows the architecture's name.
pub fn without(tiny: &Tiny, key: &str) -> File {
    let (mut file, key) = (tiny.build(), format!("{}.{key}", tiny.arch.name()));
    let n = file.metadata.len();
    file.metadata.retain(|(k, _)| *k != key);
    assert_eq!(file.metadata.len() + 1, n, "{}: no key {key} to take away", tiny.name);
    file
}

/// Why the file is refused, in one line that begins with its name.
#[track_caller]
pub fn refusal(file: &File) -> String {
    let message = match open(file) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    };
    assert!(message.starts_with("model.gguf: ") && !message.contains('\n'), "{message}");
    message
}

/// Fails unless the model is refused without each of these tensors of a layer, and with each of them longer by one in any of its
/// dimensions, by the tensor's name.
#[track_caller]
pub fn refuses_missing_and_misshapen(tiny: &Tiny, layer: usize, tensors: &[&str]) {
    for tensor in tensors {
        let name = format!("blk.{layer}.{tensor}");
        let mut missing = tiny.build();
        let at = missing.tensors.iter().position(|t| t.name == name).expect("the tensor");
        let n_dims = missing.tensors.remove(at).shape.len();
        let message = refusal(&missing);
        assert!(message.contains(&format!("tensor '{name}' is missing")), "{}: {message}", tiny.name);
        for dim in 0..n_dims {
            let mut wrong = tiny.build();
            let t = &mut wrong.tensors[at];
            t.shape[dim] += 1;
            t.data = vec![0.0; t.shape.iter().product()];
            let message = refusal(&wrong);
            let expected = format!("tensor '{name}' has shape {:?}", wrong.tensors[at].shape);
            assert!(message.contains(&expected), "{}, dimension {dim}: {message}", tiny.name);
        }
    }
}
