//! Changes to a model file that leave most of it whole, so that the faults lie behind the parser: odd numbers, other types,
//! lists too long or too short, shapes, names and weights that do not fit, flipped bytes, a missing end.

use crate::support::gguf::{File, Value};

/// Where choices come from: a generator of random numbers, or a fuzzer's bytes.
pub struct Choices<'a>(pub &'a mut dyn FnMut() -> u64);

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        ((self.0)() % n.max(1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// The bytes of `file`, changed in one to three places.
pub fn mutate(file: &File, choices: &mut Choices) -> Vec<u8> {
    let mut file = file.clone();
    let n = 1 + choices.below(3);
    let mut flips = 0;
    let mut cut = false;
    for _ in 0..n {
        match choices.below(12) {
            0..=4 => change_metadata(&mut file, choices),
            5 => {
                let at = choices.below(file.metadata.len());
                file.metadata.remove(at);
            }
            6 | 7 => change_shape(&mut file, choices),
            8 => change_name(&mut file, choices),
            9 => change_weights(&mut file, choices),
            10 => flips += 1 + choices.below(4),
            _ => cut = true,
        }
    }
    let mut bytes = file.to_bytes();
    let data: usize = file.tensors.iter().map(|t| (4 * t.data.len()).next_multiple_of(32)).sum();
    let header = bytes.len().saturating_sub(data).max(1);
    for _ in 0..flips {
        // Names, types, shapes and offsets of tensors are the last part of the header.
        let at =
            if choices.below(2) == 0 { choices.below(header) } else { header - 1 - choices.below(header.min(2000)) };
        bytes[at] = choices.one_of(&[0, 1, 2, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)]);
    }
    if cut {
        bytes.truncate(choices.below(bytes.len()));
    }
    bytes
}

fn change_metadata(file: &mut File, choices: &mut Choices) {
    let at = choices.below(file.metadata.len());
    let value = &mut file.metadata[at].1;
    *value = match choices.below(8) {
        0 => any_value(choices),
        _ => changed(value, choices),
    };
}

fn any_value(choices: &mut Choices) -> Value {
    match choices.below(8) {
        0 => Value::Bool(true),
        1 => Value::F32(f32::NAN),
        2 => Value::Str("none".into()),
        3 => Value::I32(-1),
        4 => Value::U64(u64::MAX),
        5 => Value::Array(4, vec![]),
        6 => Value::Array(7, vec![Value::Bool(choices.below(2) == 0); 5]),
        _ => Value::Array(5, (0..5).map(|_| Value::I32(choices.below(9) as i32 - 2)).collect()),
    }
}

fn changed(value: &Value, choices: &mut Choices) -> Value {
    match value {
        Value::U32(x) => {
            let near = [x.wrapping_add(1), x.wrapping_sub(1), x.wrapping_mul(2), x / 2, x / 3, x ^ 1];
            let far = [0, 1, 2, 3, 7, 256, 1 << 20, 1 << 30, 1 << 31, u32::MAX];
            Value::U32(choices.one_of(&[&near[..], &far].concat()))
        }
        Value::F32(x) => Value::F32(choices.one_of(&[
            0.0,
            -0.0,
            -1.0,
            1e-30,
            1e30,
            f32::MIN_POSITIVE / 2.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -x,
            x * 1.5,
        ])),
        Value::Bool(x) => Value::Bool(!x),
        Value::Str(s) => {
            let mut chars: Vec<char> = s.chars().collect();
            match choices.below(4) {
                0 => chars.clear(),
                1 => chars.truncate(choices.below(chars.len() + 1)),
                2 => {
                    chars.insert(choices.below(chars.len() + 1), choices.one_of(&['{', '}', '%', '\0', 'é', ' ', '0']))
                }
                _ => {
                    chars = choices
                        .one_of(&["llama", "qwen2", "qwen3", "gemma3", "phi3", "yarn", "longrope", "gpt2"])
                        .chars()
                        .collect()
                }
            }
            Value::Str(chars.into_iter().collect())
        }
        Value::Array(ty, items) => {
            let mut items = items.clone();
            match choices.below(4) {
                0 => items.truncate(choices.below(items.len() + 1)),
                1 => items.extend(items.last().cloned()),
                2 if items.len() > 1 => {
                    let (a, b) = (choices.below(items.len()), choices.below(items.len()));
                    items.swap(a, b);
                }
                _ if !items.is_empty() => {
                    let at = choices.below(items.len());
                    items[at] = changed(&items[at], choices);
                }
                _ => {}
            }
            Value::Array(*ty, items)
        }
        Value::I32(x) => {
            Value::I32(choices.one_of(&[0, 1, 2, 3, 4, 5, 6, 7, -1, i32::MAX, i32::MIN, x.wrapping_add(1)]))
        }
        other => other.clone(),
    }
}

/// The data follows the shape, so that the file as such stays valid.
fn change_shape(file: &mut File, choices: &mut Choices) {
    let at = choices.below(file.tensors.len());
    let tensor = &mut file.tensors[at];
    match choices.below(5) {
        0 => tensor.shape.reverse(),
        1 => tensor.shape.push(1 + choices.below(2)),
        2 if tensor.shape.len() > 1 => {
            tensor.shape.pop();
        }
        _ => {
            let dim = choices.below(tensor.shape.len());
            let n = tensor.shape[dim];
            tensor.shape[dim] = choices.one_of(&[1, 2, n + 1, n.saturating_sub(1).max(1), n * 2, n.div_ceil(2)]);
        }
    }
    tensor.data.resize(tensor.shape.iter().product(), 0.25);
}

fn change_name(file: &mut File, choices: &mut Choices) {
    let (at, from) = (choices.below(file.tensors.len()), choices.below(file.tensors.len()));
    match choices.below(4) {
        0 => {
            file.tensors.remove(at);
        }
        1 => file.tensors[at].name = file.tensors[from].name.clone(),
        2 => {
            let mut copy = file.tensors[at].clone();
            copy.name = copy.name.replace("weight", choices.one_of(&["scale", "bias", "input_scale"]));
            copy.shape.truncate(1);
            copy.shape[0] = choices.one_of(&[1, copy.shape[0]]);
            copy.data = vec![choices.one_of(&[0.5, f32::NAN, 1e38]); copy.shape[0]];
            file.tensors.push(copy);
        }
        _ => {
            let (a, b) = (file.tensors[at].name.clone(), file.tensors[from].name.clone());
            file.tensors[at].name = b;
            file.tensors[from].name = a;
        }
    }
}

fn change_weights(file: &mut File, choices: &mut Choices) {
    let at = choices.below(file.tensors.len());
    let data = &mut file.tensors[at].data;
    let value = choices.one_of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 3e38, -3e38, 1e-42]);
    match choices.below(3) {
        0 => data.fill(value),
        _ => {
            let i = choices.below(data.len());
            data[i] = value;
        }
    }
}
