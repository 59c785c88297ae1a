//! Metadata values that take the place of those in a file.

use super::{Gguf, GgufError, Value};

/// A metadata value in place of the file's.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataOverride {
    key: String,
    value: Value,
}

impl MetadataOverride {
    /// Reads `KEY=TYPE:VALUE`, with `int`, `float`, `bool` or `str` for the type.
    ///
    /// # Errors
    /// [`GgufError::OverrideSyntax`].
    pub fn parse(text: &str) -> Result<MetadataOverride, GgufError> {
        let bad = |problem: String| GgufError::OverrideSyntax { problem };
        let parts = text.split_once('=').and_then(|(key, rest)| Some((key, rest.split_once(':')?)));
        let Some((key, (ty, value))) = parts.filter(|(key, _)| !key.is_empty()) else {
            return Err(bad("expected KEY=TYPE:VALUE, with int, float, bool or str for TYPE".into()));
        };
        let value = match ty {
            "int" => value.parse().map(Value::I64).map_err(|_| bad("expected a whole number behind int:".into()))?,
            "float" => match value.parse::<f64>() {
                Ok(x) if x.is_finite() => Value::F64(x),
                _ => return Err(bad("expected a number behind float:".into())),
            },
            "bool" => value.parse().map(Value::Bool).map_err(|_| bad("expected true or false behind bool:".into()))?,
            "str" => Value::String(value.to_owned()),
            _ => return Err(bad("the type is int, float, bool or str".into())),
        };
        Ok(MetadataOverride { key: key.to_owned(), value })
    }

    /// A value for a key.
    pub(crate) fn new(key: String, value: Value) -> MetadataOverride {
        MetadataOverride { key, value }
    }
}

/// What a value is, whatever its width.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::F32(_) | Value::F64(_) => "float",
        Value::Bool(_) => "bool",
        Value::String(_) => "str",
        Value::Array(_) => "array",
        _ => "int",
    }
}

impl Gguf {
    /// Puts a value in the place of the file's, or adds it if the file has none of this key. Where tensors lie was read before, and
    /// stays.
    ///
    /// # Errors
    /// The file's value is of another kind: a number with a fraction for a whole one, say, or a list.
    pub fn override_metadata(&mut self, with: &MetadataOverride) -> Result<(), GgufError> {
        let MetadataOverride { key, value } = with;
        match self.key_index.get(key) {
            Some(&i) => {
                let old = &self.metadata[i].1;
                if kind(old) != kind(value) {
                    return Err(GgufError::OverrideKind {
                        file: self.file.clone(),
                        key: key.clone(),
                        found: old.type_name(),
                        given: kind(value),
                    });
                }
                self.metadata[i].1 = value.clone();
            }
            None => {
                self.key_index.insert(key.clone(), self.metadata.len());
                self.metadata.push((key.clone(), value.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufWriter;

    fn sample() -> Gguf {
        let mut w = GgufWriter::new();
        w.set_u32("n", 3).unwrap();
        w.set("x", 0.5f32).unwrap();
        w.set("flag", false).unwrap();
        w.set_str("text", "old").unwrap();
        w.set("list", vec![1i32, 2]).unwrap();
        let mut bytes = Vec::new();
        w.write_to(&mut bytes, "sample.gguf", crate::gguf::no_source).unwrap();
        Gguf::from_bytes(bytes, "sample.gguf").unwrap()
    }

    #[test]
    fn values_are_replaced_or_added() {
        let mut gguf = sample();
        for text in ["n=int:7", "x=float:1e3", "flag=bool:true", "text=str:a=b:c", "new=int:-1", "empty=str:", "n=int:8"] {
            gguf.override_metadata(&MetadataOverride::parse(text).unwrap()).unwrap();
        }
        assert_eq!((gguf.u32("n").unwrap(), gguf.f32("x").unwrap()), (Some(8), Some(1000.0)));
        assert_eq!((gguf.bool("flag").unwrap(), gguf.str("text").unwrap()), (Some(true), Some("a=b:c")));
        assert_eq!((gguf.get("new"), gguf.str("empty").unwrap()), (Some(&Value::I64(-1)), Some("")));
        assert_eq!(gguf.metadata().len(), 7);
        // A number that the key cannot hold is found where it is read.
        assert!(gguf.u32("new").is_err());
    }

    #[test]
    fn mistakes_are_told() {
        for (bad, what) in [
            ("", "expected KEY=TYPE:VALUE"),
            ("n", "expected KEY=TYPE:VALUE"),
            ("n=3", "expected KEY=TYPE:VALUE"),
            ("=int:3", "expected KEY=TYPE:VALUE"),
            ("n=int3", "expected KEY=TYPE:VALUE"),
            ("n=u32:3", "the type is int, float, bool or str"),
            ("n=INT:3", "the type is int, float, bool or str"),
            ("n=int:3.5", "a whole number"),
            ("n=int:", "a whole number"),
            ("n=float:x", "a number behind float:"),
            ("n=float:nan", "a number behind float:"),
            ("n=float:inf", "a number behind float:"),
            ("n=bool:1", "true or false"),
        ] {
            let e = MetadataOverride::parse(bad).unwrap_err().to_string();
            assert!(e.contains(what), "{bad}: {e}");
        }
        let mut gguf = sample();
        for (text, what) in [
            ("n=float:3", "\"n\" is u32 in the file, and float does not replace it"),
            ("x=int:3", "\"x\" is f32"),
            ("flag=str:true", "\"flag\" is bool"),
            ("list=int:1", "\"list\" is array of i32"),
        ] {
            let e = gguf.override_metadata(&MetadataOverride::parse(text).unwrap()).unwrap_err().to_string();
            assert!(e.starts_with("sample.gguf: metadata ") && e.contains(what), "{text}: {e}");
        }
    }
}
