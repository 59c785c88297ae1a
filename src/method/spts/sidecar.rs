//! The sidecar: a GGUF file with the low-rank FFN proxies of one model.
//!
//! Format, version 1. Metadata:
//! - `general.architecture` = `spts-proxies`
//! - `spts.version` (u32), `spts.fingerprint` (string): of the model it was made for
//! - `spts.d_low`, `spts.rank` (u32): sizes of the proxies
//! - `spts.schedule` (string): name of the schedule it was made for; for people, since every layer that can skip has a proxy
//! - `spts.calibration_tokens` (u32)
//!
//! Tensors, F16, for each layer N that has a proxy, in ggml order:
//! `blk.N.proxy_u_gu [n_embd, 2 rank]`, `blk.N.proxy_v_gate [rank, d_low]`, `blk.N.proxy_v_up [rank, d_low]`,
//! `blk.N.proxy_v_down [d_low, rank]`.

use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;

use crate::gguf::{GgmlType, Gguf, GgufError, GgufWriter, OpenOptions, no_source};
use crate::hash::Fnv1a;
use crate::model::file::ModelFile;
use crate::output_file::OutputFile;
use spts_quant::{LayerProxyF16, ProxySize};

/// Version of the format that is written and read.
pub const VERSION: u32 = 1;
/// `general.architecture` of a sidecar.
pub const ARCHITECTURE: &str = "spts-proxies";
/// Tensors of one proxy.
pub const TENSORS: [&str; 4] = ["proxy_u_gu", "proxy_v_gate", "proxy_v_up", "proxy_v_down"];

/// Why a sidecar can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// The file is no GGUF, or cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The GGUF is no sidecar.
    #[error("{file}: not a sidecar: its architecture is '{found}', expected '{ARCHITECTURE}'")]
    NotASidecar {
        /// File.
        file: String,
        /// As the file says.
        found: String,
    },
    /// A version this program does not read.
    #[error("{file}: sidecar of version {found}, expected {VERSION}: make it again")]
    Version {
        /// File.
        file: String,
        /// In the file.
        found: u32,
    },
    /// The sidecar was made for other weights.
    #[error(
        "{file}: sidecar of another model (fingerprint {found}, this model's is {expected}): make one for this model"
    )]
    OtherModel {
        /// File.
        file: String,
        /// In the file.
        found: String,
        /// The model's.
        expected: String,
    },
    /// A key that has to be there.
    #[error("{file}: metadata key '{key}' is missing")]
    MissingKey {
        /// File.
        file: String,
        /// Key.
        key: &'static str,
    },
    /// A tensor that is missing or of the wrong shape or type.
    #[error("{file}: tensor '{tensor}' is {found}, expected {expected}")]
    Tensor {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// A proxy that would compute no number.
    #[error(
        "{file}: tensor '{tensor}', a proxy of layer {layer}: element {element} is {value}, expected a finite number: make it again"
    )]
    NotFinite {
        /// File.
        file: String,
        /// Layer.
        layer: usize,
        /// Tensor.
        tensor: String,
        /// Its first such element.
        element: usize,
        /// Infinity, or no number.
        value: f32,
    },
    /// A layer that skips has no proxy.
    #[error("{file}: no proxy for layer {layer}, where the schedule skips: calibrate again with this schedule")]
    MissingLayer {
        /// File.
        file: String,
        /// Layer.
        layer: usize,
    },
}

/// A sidecar that is about to be written.
#[derive(Clone, Debug)]
pub struct NewSidecar {
    /// Of the model ([`fingerprint`]).
    pub fingerprint: String,
    /// Name of the schedule that it was made for.
    pub schedule: String,
    /// Tokens it was calibrated on.
    pub n_tokens: usize,
    /// Sizes of every proxy.
    pub size: ProxySize,
    /// The width `n_embd` of the model that the proxies were made for.
    pub n_embd: usize,
    /// Layers, ascending, with their proxies.
    pub layers: Vec<(usize, LayerProxyF16)>,
}

impl NewSidecar {
    /// Writes the file at `path`; what was there is replaced once all of it is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), SidecarError> {
        self.write_into(OutputFile::create(path, &[]).map_err(GgufError::from)?)
    }

    /// As [`NewSidecar::write`], where the file has been created already: before the calibration.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_into(&self, out: OutputFile) -> Result<(), SidecarError> {
        let mut w = GgufWriter::new();
        w.set_str("general.architecture", ARCHITECTURE)?;
        w.set_u32("spts.version", VERSION)?;
        w.set_str("spts.fingerprint", &self.fingerprint)?;
        w.set_u32("spts.d_low", self.size.d_low as u32)?;
        w.set_u32("spts.rank", self.size.rank as u32)?;
        w.set_str("spts.schedule", &self.schedule)?;
        w.set_u32("spts.calibration_tokens", self.n_tokens as u32)?;
        let shapes = shapes(self.n_embd, self.size);
        for (layer, proxy) in &self.layers {
            let data = [&proxy.u_gu, &proxy.v_gate, &proxy.v_up, &proxy.v_down];
            for ((tensor, shape), values) in TENSORS.iter().zip(shapes).zip(data) {
                w.add_tensor(&tensor_name(*layer, tensor), &shape.map(|d| d as u64), GgmlType::F16, move |_, out| {
                    values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
                })?;
            }
        }
        Ok(w.write_into(out, no_source)?)
    }
}

/// Shapes of [`TENSORS`].
fn shapes(n_embd: usize, ProxySize { d_low, rank }: ProxySize) -> [[usize; 2]; 4] {
    [[n_embd, 2 * rank], [rank, d_low], [rank, d_low], [d_low, rank]]
}

/// The proxies of one model, checked.
#[derive(Debug)]
pub struct Sidecar {
    gguf: Gguf,
    fingerprint: String,
    n_embd: usize,
    size: ProxySize,
    layers: Vec<usize>,
}

impl Sidecar {
    /// Where the sidecar of a model lies by default: `model.gguf` -> `model.spts.gguf`. Of other names nothing is taken away,
    /// so that no two models share one: `model-1.5b` -> `model-1.5b.spts.gguf`.
    pub fn path_beside(model: &Path) -> PathBuf {
        if model.extension().is_some_and(|extension| extension == "gguf") {
            return model.with_extension("spts.gguf");
        }
        let mut name = model.file_name().unwrap_or_default().to_owned();
        name.push(".spts.gguf");
        model.with_file_name(name)
    }

    /// Opens and checks a sidecar.
    ///
    /// # Errors
    /// Not a sidecar, another version, tensors missing, of the wrong shape, or with infinite values or none.
    pub fn open(path: &Path) -> Result<Self, SidecarError> {
        Self::from_gguf(Gguf::open(path, OpenOptions { mmap: true, mlock: false })?)
    }

    /// Checks a file that is already open.
    ///
    /// # Errors
    /// As [`Sidecar::open`].
    pub fn from_gguf(gguf: Gguf) -> Result<Self, SidecarError> {
        let file = gguf.path().display().to_string();
        let missing = |key: &'static str| SidecarError::MissingKey { file: file.clone(), key };
        let found = gguf.str("general.architecture")?.unwrap_or_default();
        if found != ARCHITECTURE {
            return Err(SidecarError::NotASidecar { file: file.clone(), found: found.into() });
        }
        let version = gguf.u32("spts.version")?.ok_or_else(|| missing("spts.version"))?;
        if version != VERSION {
            return Err(SidecarError::Version { file: file.clone(), found: version });
        }
        let fingerprint = gguf.str("spts.fingerprint")?.ok_or_else(|| missing("spts.fingerprint"))?.to_string();
        let d_low = gguf.u32("spts.d_low")?.ok_or_else(|| missing("spts.d_low"))? as usize;
        let rank = gguf.u32("spts.rank")?.ok_or_else(|| missing("spts.rank"))? as usize;
        let layers: Vec<usize> = gguf
            .tensors()
            .filter_map(|t| t.name.strip_prefix("blk.")?.strip_suffix(".proxy_u_gu")?.parse().ok())
            .collect();
        let n_embd =
            layers.first().and_then(|l| gguf.tensor(&tensor_name(*l, TENSORS[0]))).map_or(0, |t| t.shape[0] as usize);
        let sidecar = Self { gguf, fingerprint, n_embd, size: ProxySize { d_low, rank }, layers };
        for &layer in &sidecar.layers {
            for (tensor, shape) in TENSORS.iter().zip(shapes(n_embd, sidecar.size)) {
                sidecar.check_tensor(&file, &tensor_name(layer, tensor), shape)?;
            }
        }
        sidecar.layers.par_iter().try_for_each(|&layer| sidecar.check_values(&file, layer))?;
        Ok(sidecar)
    }

    /// Scores that are no numbers would choose the first tokens, whatever they are.
    fn check_values(&self, file: &str, layer: usize) -> Result<(), SidecarError> {
        for tensor in TENSORS.map(|tensor| tensor_name(layer, tensor)) {
            let Some(info) = self.gguf.tensor(&tensor) else { continue };
            let values = self.gguf.tensor_data(info).chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]));
            if let Some((element, value)) = values.enumerate().find(|(_, x)| !x.is_finite()) {
                let value = value.to_f32();
                return Err(SidecarError::NotFinite { file: file.into(), layer, tensor, element, value });
            }
        }
        Ok(())
    }

    fn check_tensor(&self, file: &str, name: &str, shape: [usize; 2]) -> Result<(), SidecarError> {
        let error = |found: String| SidecarError::Tensor {
            file: file.into(),
            tensor: name.into(),
            found,
            expected: format!("F16 {shape:?}"),
        };
        let info = self.gguf.tensor(name).ok_or_else(|| error("missing".into()))?;
        if info.ty != GgmlType::F16 || !info.shape.iter().map(|&d| d as usize).eq(shape) {
            return Err(error(format!("{} {:?}", info.ty.name(), info.shape)));
        }
        Ok(())
    }

    /// Checks that the sidecar was made for this model: by its fingerprint, and, since a fingerprint can be copied, by the
    /// layers and the width that the kernels rely on.
    ///
    /// # Errors
    /// It was not.
    pub fn check(&self, model: &ModelFile) -> Result<(), SidecarError> {
        let file = self.gguf.path().display().to_string();
        let expected = fingerprint(model.gguf());
        if self.fingerprint != expected {
            return Err(SidecarError::OtherModel { file, found: self.fingerprint.clone(), expected });
        }
        let shape = model.shape();
        if let Some(layer) = self.layers.iter().find(|&&l| l >= shape.n_layer) {
            return Err(SidecarError::Tensor {
                file,
                tensor: tensor_name(*layer, TENSORS[0]),
                found: format!("of layer {layer}"),
                expected: format!("a layer of 0 to {}", shape.n_layer - 1),
            });
        }
        match self.layers.first() {
            Some(layer) => self.check_tensor(&file, &tensor_name(*layer, TENSORS[0]), [shape.n_embd, 2 * self.size.rank]),
            None => Ok(()),
        }
    }

    /// Checks that every layer of `layers` has a proxy.
    ///
    /// # Errors
    /// One has none.
    pub fn check_layers(&self, layers: impl IntoIterator<Item = usize>) -> Result<(), SidecarError> {
        match layers.into_iter().find(|l| !self.layers.contains(l)) {
            None => Ok(()),
            Some(layer) => Err(SidecarError::MissingLayer { file: self.gguf.path().display().to_string(), layer }),
        }
    }

    /// Channels that the proxies keep, and their rank.
    pub fn size(&self) -> ProxySize {
        self.size
    }

    /// The width `n_embd` of the model that the proxies were made for.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Layers that have a proxy.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The GGUF file of the sidecar.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }
}

/// Name of a proxy's tensor.
pub fn tensor_name(layer: usize, tensor: &str) -> String {
    format!("blk.{layer}.{tensor}")
}

/// A model's fingerprint: its tensors' names, types and shapes, and the ends of their data (64-bit FNV-1a, as hex).
pub fn fingerprint(gguf: &Gguf) -> String {
    const SAMPLE: usize = 4096;
    let mut hash = Fnv1a::default();
    let mut eat = |bytes: &[u8]| hash.write(bytes);
    for t in gguf.tensors() {
        eat(t.name.as_bytes());
        eat(&t.ty.id().to_le_bytes());
        t.shape.iter().for_each(|d| eat(&d.to_le_bytes()));
        let data = gguf.tensor_data(t);
        eat(&data[..data.len().min(SAMPLE)]);
        eat(&data[data.len().saturating_sub(SAMPLE)..]);
    }
    format!("{:016x}", hash.finish())
}
