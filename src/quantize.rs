//! Quantizing a model file: every weight to the type that the mix gives it, everything else as it is.
//!
//! Weights are streamed: a few megabytes of rows at a time are dequantized, quantized in parallel by ggml's own conversions,
//! and written. The new file gets its name only when it is whole. Metadata is carried over, `general.file_type` renewed.

use std::io::{self, Write};
use std::path::Path;

use spts_quant::rows::convert_rows;
use spts_quant::{Choice, ModelShape, Preset, TensorType, choose_type};

use crate::ggml::quantize as convert;
use crate::gguf::{GgmlType, Gguf, GgufError, GgufWriter, TensorDecl, TensorInfo, is_split_key};
use crate::model::ModelError;
use crate::model::hparams::HParams;
use crate::model::table::WeightTable;
use crate::output_file::{OutputError, OutputFile};

/// Elements that a thread converts at a time: 4 MiB of floats.
const CHUNK: usize = 1 << 20;

/// The largest F16.
const LARGEST: f32 = 65504.0;

/// Why a file cannot be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// Reading the one file, or writing the other.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The place of the new file cannot be written, or is that of the old one.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// No model that this program knows.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What was lost once does not come back.
    #[error(
        "{file}: tensor '{tensor}' is {found} already, and quantizing it again to {wanted} loses more: start from F32, F16 or BF16, or allow it"
    )]
    Requantize {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
        /// The type it should get.
        wanted: &'static str,
    },
    /// A type without a conversion to floats.
    #[error("{file}: tensor '{tensor}' has type {found}, which cannot be converted")]
    Unconvertible {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// Half-precision scales cannot hold it.
    #[error("{file}: tensor '{tensor}': row {row} holds {value}, expected finite numbers up to 65504")]
    Value {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// Row.
        row: usize,
        /// The value.
        value: f32,
    },
}

/// How a file is quantized.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions {
    /// The mix of types.
    pub preset: Preset,
    /// Quantize what is quantized already.
    pub allow_requantize: bool,
}

/// The types of one tensor before and after quantization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its type in the old file.
    pub from: GgmlType,
    /// Its type in the new one.
    pub to: GgmlType,
    /// The type that the mix wanted, if the length of the rows ruled it out.
    pub instead_of: Option<GgmlType>,
}

/// Sizes of the weights before and after, in bytes, and what became of each.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuantizeReport {
    /// In the old file.
    pub bytes_before: u64,
    /// In the new file.
    pub bytes_after: u64,
    /// In the file's order.
    pub tensors: Vec<TensorPlan>,
}

/// GGUF's type of the same name.
pub fn ggml_type(ty: TensorType) -> GgmlType {
    match ty {
        TensorType::F32 => GgmlType::F32,
        TensorType::F16 => GgmlType::F16,
        TensorType::Q4_0 => GgmlType::Q4_0,
        TensorType::Q5_0 => GgmlType::Q5_0,
        TensorType::Q5_1 => GgmlType::Q5_1,
        TensorType::Q8_0 => GgmlType::Q8_0,
        TensorType::Q4_K => GgmlType::Q4_K,
        TensorType::Q5_K => GgmlType::Q5_K,
        TensorType::Q6_K => GgmlType::Q6_K,
        TensorType::MXFP4 => GgmlType::MXFP4,
    }
}

/// Writes `gguf` to `path` in other types. `progress` is called with each tensor, and the share that is done.
///
/// # Errors
/// See [`QuantizeError`]; what was at `path` before is then still there.
pub fn quantize(
    gguf: &Gguf,
    path: &Path,
    options: QuantizeOptions,
    progress: &mut dyn FnMut(&TensorPlan, f64),
) -> Result<QuantizeReport, QuantizeError> {
    let file = gguf.path().display().to_string();
    let tensors = plan(gguf, options)?;
    let inputs: Vec<&Path> = gguf.paths().collect();
    let out = OutputFile::create(path, &inputs)?;
    let mut writer = GgufWriter::new();
    // A split model becomes one file.
    for (key, value) in gguf.metadata().iter().filter(|(key, _)| !is_split_key(key)) {
        writer.set(key, value.clone())?;
    }
    writer.set_u32("general.file_type", options.preset.file_type())?;
    writer.set_u32("general.quantization_version", 2)?;
    for (info, plan) in gguf.tensors().zip(&tensors) {
        writer.declare_tensor(&info.name, &info.shape, plan.to)?;
    }
    let total: u64 = gguf.tensors().map(|t| t.n_elements()).sum();
    let (mut sources, mut done, mut bytes_after) = (gguf.tensors().zip(&tensors), 0, 0);
    // The writer only knows errors of input and output: ours is kept here meanwhile.
    let mut failure = None;
    let written = writer.write_into(out, |decl: &TensorDecl, out: &mut dyn Write| {
        let Some((info, plan)) = sources.next() else { unreachable!("the tensors that were declared") };
        progress(plan, done as f64 / total as f64);
        done += info.n_elements();
        bytes_after += decl.nbytes;
        let data = gguf.tensor_data(info);
        if plan.from == plan.to {
            out.write_all(data)?;
        } else {
            convert_tensor(&file, info, data, plan, out).map_err(|e| match e {
                Conversion::Io(e) => e,
                Conversion::Failed(e) => {
                    let stop = io::Error::other(e.to_string());
                    failure = Some(e);
                    stop
                }
            })?;
        }
        // Pages of the map count as this process's memory, and these will not be read again.
        gguf.release(info, 0..data.len());
        Ok(())
    });
    if let Some(e) = failure {
        return Err(e);
    }
    written?;
    Ok(QuantizeReport { bytes_before: gguf.tensors().map(|t| t.nbytes).sum(), bytes_after, tensors })
}

/// The types of all tensors, and whether they can be had.
fn plan(gguf: &Gguf, options: QuantizeOptions) -> Result<Vec<TensorPlan>, QuantizeError> {
    let file = || gguf.path().display().to_string();
    let hp = HParams::from_gguf(gguf)?;
    let mut table = WeightTable::new(gguf);
    hp.arch.load(&hp, &mut table)?;
    table.finish(hp.arch)?;
    let model = ModelShape {
        // Those that predict further tokens count.
        n_layer: hp.shape.n_layer + hp.n_predict,
        n_head: hp.shape.n_head,
        n_head_kv: hp.shape.n_head_kv,
        tied_output: hp.shape.tied,
    };
    let of = |info: &TensorInfo| {
        let (to, instead_of) = match choose_type(options.preset, &info.name, &info.shape, &model) {
            Choice::Keep => (info.ty, None),
            Choice::To { ty, instead_of } => (ggml_type(ty), instead_of.map(ggml_type)),
        };
        let plan = TensorPlan { name: info.name.clone(), from: info.ty, to, instead_of };
        if plan.from == plan.to {
            return Ok(plan);
        }
        if !convert::can_multiply(plan.from) {
            return Err(QuantizeError::Unconvertible { file: file(), tensor: plan.name, found: plan.from.name() });
        }
        // Floats hold whatever was quantized.
        if plan.from.is_quantized() && plan.to != GgmlType::F32 && !options.allow_requantize {
            return Err(QuantizeError::Requantize {
                file: file(),
                tensor: plan.name,
                found: plan.from.name(),
                wanted: plan.to.name(),
            });
        }
        Ok(plan)
    };
    gguf.tensors().map(of).collect()
}

/// Why a tensor was not converted.
enum Conversion {
    Io(io::Error),
    Failed(QuantizeError),
}

fn convert_tensor(
    file: &str,
    info: &TensorInfo,
    data: &[u8],
    plan: &TensorPlan,
    out: &mut dyn Write,
) -> Result<(), Conversion> {
    let n_per_row = info.shape[0] as usize;
    let n_rows = info.shape[1..].iter().product::<u64>() as usize;
    let row_bytes = data.len() / n_rows;
    let make = |rows: std::ops::Range<usize>| {
        let bytes = &data[rows.start * row_bytes..rows.end * row_bytes];
        let floats = convert::dequantize(plan.from, bytes, rows.len() * n_per_row);
        if let Some(at) = floats.iter().position(|x| x.is_nan() || x.abs() > LARGEST) {
            return Err(Conversion::Failed(QuantizeError::Value {
                file: file.to_owned(),
                tensor: info.name.clone(),
                row: rows.start + at / n_per_row,
                value: floats[at],
            }));
        }
        Ok(convert::quantize(plan.to, &floats, n_per_row))
    };
    convert_rows(n_rows, CHUNK / n_per_row, make, |bytes| out.write_all(bytes).map_err(Conversion::Io))
}
