//! Calibration: a model's low-rank FFN proxies from some text, without gradients (LTP, the offline part).
//!
//! ```text
//! z(x)     = | act(W_gate x) * (W_up x) |            captured from dense prefills of the text, [n_ff] a token
//! score[c] = mean of the largest 20 % of z[c]         over all tokens
//! channels = the d_low best
//! proxy    = truncated SVD of W_gate, W_up (rows) and W_down (columns) restricted to them
//! ```
//!
//! The text goes through the model in pieces; of each layer only the largest values of each channel are kept, so memory is the
//! model's, one tile's z, and `2 * n_ff * 0.2 * n_tokens` bytes a layer (a text of one piece: one layer's at a time). Weights are
//! dequantized layer by layer, and of gate and up the chosen rows alone. Biases are left out: no supported FFN has any.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use spts_quant::saliency::{PAPER_RHO, Storage};
use spts_quant::{ChannelSaliency, LayerProxy, LayerProxyF16, ProxySize, RestrictedFfn, SaliencyError};

use crate::ggml::quantize::{dequantize, row_size};
use crate::graph::ir::Tap;
use crate::method::spts::capture::Capture;
use crate::method::spts::schedule::Probe;
use crate::method::spts::sidecar::{self, NewSidecar};
use crate::model::shape::LayerKind;
use crate::model::table::Weight;
use crate::model::weights::Model;
use crate::{Error, Result, Session, SessionOptions};

use super::error::CalibrationError;

/// Fewer tokens than this say little about a channel's largest values.
pub const MIN_TOKENS: usize = 256;

/// How proxies are calibrated.
#[derive(Clone, Debug)]
pub struct CalibrateOptions {
    /// Most tokens to use, over all texts.
    pub n_tokens: usize,
    /// Tokens that are read together: the context that a state has seen is at most this long.
    pub piece: usize,
    /// Sizes of the proxies; cut down to the model's.
    pub size: ProxySize,
    /// Name of the schedule, for the record.
    pub schedule: String,
    /// Context that the model will run with, as in [`SessionOptions`]: rope factors may follow from it. Pieces are not longer.
    pub n_ctx: Option<usize>,
    /// CPU threads; `None`: one for each physical core.
    pub n_threads: Option<usize>,
}

impl CalibrateOptions {
    /// Options that calibrate on 8192 tokens in pieces of 2048.
    pub fn new(size: ProxySize, schedule: &str) -> Self {
        Self { n_tokens: 8192, piece: 2048, size, schedule: schedule.to_owned(), n_ctx: None, n_threads: None }
    }
}

/// How far a calibration has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CalibrationStep {
    /// The model reads.
    Reading {
        /// Tokens in all.
        n_tokens: usize,
        /// Share of the reading that is done.
        fraction: f32,
    },
    /// Weights are decomposed.
    Decomposing {
        /// Layers that are done.
        done: usize,
        /// Layers in all.
        n_layer: usize,
    },
}

/// Makes the proxies of every layer that can skip (all but those with a sliding window). `texts` are token ids without special
/// tokens; each gets the same share of `options.n_tokens`, and short ones leave the rest of theirs to the others.
///
/// `progress` is called often; breaking stops with [`Error::Interrupted`].
///
/// # Errors
/// Too little text, out of memory, a model whose states or weights are no numbers.
pub fn calibrate(
    model: &Arc<Model>,
    texts: &[Vec<u32>],
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(CalibrationStep) -> ControlFlow<()>,
) -> Result<NewSidecar> {
    let (shape, n_ctx_train) = (model.shape(), model.hparams().n_ctx_train);
    if shape.experts.is_some() {
        return Err(CalibrationError::Experts.into());
    }
    let skips = |l: &usize| matches!(shape.layer_kind(*l), LayerKind::Full | LayerKind::Recurrent);
    let layers: Vec<usize> = (0..shape.n_layer).filter(skips).collect();
    let Some(n_ff) = layers.iter().map(|&l| shape.sizes(l).n_ff).min() else {
        return Err(CalibrationError::NoLayers.into());
    };
    let size = options.size.clamp_to(shape.n_embd, n_ff);
    let bos = model.tokenizer().bos().filter(|_| model.tokenizer().add_bos());
    let n_ctx = options.n_ctx.unwrap_or(n_ctx_train);
    let pieces = pieces(texts, bos, options.n_tokens, options.piece.min(n_ctx_train).min(n_ctx));
    let n_tokens = pieces.iter().map(Vec::len).sum();
    if n_tokens < MIN_TOKENS {
        return Err(CalibrationError::TooShort { found: n_tokens, needed: MIN_TOKENS }.into());
    }
    let channels = salient_channels(model, &layers, &pieces, size.d_low, options, progress)?;
    let mut proxies = Vec::with_capacity(layers.len());
    for (done, (&layer, channels)) in layers.iter().zip(&channels).enumerate() {
        if progress(CalibrationStep::Decomposing { done, n_layer: layers.len() }).is_break() {
            return Err(Error::Interrupted);
        }
        proxies.push((layer, layer_proxy(model, layer, channels, size.rank)?));
    }
    Ok(NewSidecar {
        fingerprint: sidecar::fingerprint(model.gguf()),
        schedule: options.schedule.clone(),
        n_tokens,
        size,
        n_embd: shape.n_embd,
        layers: proxies,
    })
}

/// Pieces of at most `piece` tokens, taken from the texts in turn until there are `n_tokens`.
fn pieces(texts: &[Vec<u32>], bos: Option<u32>, n_tokens: usize, piece: usize) -> Vec<Vec<u32>> {
    let room = piece.saturating_sub(bos.is_some().into()).max(1);
    let mut sources: Vec<_> = texts.iter().map(|t| t.chunks(room)).collect();
    let mut out: Vec<Vec<u32>> = Vec::new();
    let mut left = n_tokens;
    loop {
        let before = left;
        for source in &mut sources {
            let Some(chunk) = source.next().filter(|_| left > 0) else { continue };
            let tokens: Vec<u32> = bos.into_iter().chain(chunk.iter().copied()).take(left).collect();
            left -= tokens.len();
            out.push(tokens);
        }
        if left == before {
            return out;
        }
    }
}

/// The `d_low` channels of each layer whose largest values are largest, ascending.
fn salient_channels(
    model: &Arc<Model>,
    layers: &[usize],
    pieces: &[Vec<u32>],
    d_low: usize,
    calibration: &CalibrateOptions,
    progress: &mut dyn FnMut(CalibrationStep) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>> {
    let shape = model.shape();
    let n_tokens: usize = pieces.iter().map(Vec::len).sum();
    let CalibrateOptions { n_ctx, n_threads, .. } = *calibration;
    let options = SessionOptions { n_ctx, n_threads, ..SessionOptions::default() };
    let mut session = Session::new(model.clone(), options)?;
    let capture = Capture { layers, taps: &[Tap::FfnHidden], probe: Probe::PAPER };

    let mut saliency: Vec<Option<ChannelSaliency>> = (0..shape.n_layer).map(|_| None).collect();
    let mut channels = vec![Vec::new(); shape.n_layer];
    let failure: RefCell<Option<CalibrationError>> = RefCell::new(None);
    let mut done = 0;
    for (i, piece) in pieces.iter().enumerate() {
        let is_last = i + 1 == pieces.len();
        session.clear();
        let result = session.prefill_capturing(
            piece,
            &capture,
            &mut |p| {
                let fraction = (done as f32 + p.fraction * piece.len() as f32) / n_tokens as f32;
                match failure.borrow().is_some() {
                    true => ControlFlow::Break(()),
                    false => progress(CalibrationStep::Reading { n_tokens, fraction }),
                }
            },
            &mut |captured| {
                let (layer, n_ff) = (captured.layer, shape.sizes(captured.layer).n_ff);
                let mut take = || -> std::result::Result<(), SaliencyError> {
                    if saliency[layer].is_none() {
                        saliency[layer] = Some(ChannelSaliency::new(n_ff, n_tokens, PAPER_RHO, Storage::F16)?);
                    }
                    let Some(state) = &mut saliency[layer] else { unreachable!("made above") };
                    state.push(captured.values)?;
                    if is_last && captured.rows.end == piece.len() {
                        channels[layer] = state.select(d_low)?;
                        saliency[layer] = None;
                    }
                    Ok(())
                };
                if failure.borrow().is_none()
                    && let Err(source) = take()
                {
                    *failure.borrow_mut() = Some(CalibrationError::Saliency { layer, source });
                }
            },
        );
        // The failure is why the prefill stopped, or came with its last layer.
        if let Some(e) = failure.take() {
            return Err(e.into());
        }
        result?;
        done += piece.len();
    }
    Ok(layers.iter().map(|&l| std::mem::take(&mut channels[l])).collect())
}

/// Dequantizes what the chosen channels need of a layer's FFN, and decomposes it.
fn layer_proxy(
    model: &Model,
    layer: usize,
    channels: &[u32],
    rank: usize,
) -> std::result::Result<LayerProxyF16, CalibrationError> {
    let weight = |name: &str| {
        let tensor = format!("blk.{layer}.{name}.weight");
        model.file().weight_named(&tensor).ok_or(CalibrationError::NoWeight { layer, tensor })
    };
    let (gate, up, down) = (weight("ffn_gate")?, weight("ffn_up")?, weight("ffn_down")?);
    let rows_of =
        |w: &Weight| -> Vec<f32> { channels.iter().flat_map(|&c| dequantized_row(model, w, c as usize)).collect() };
    let (gate_rows, up_rows) = (rows_of(gate), rows_of(up));
    let n_embd = gate.ne[0];
    let mut down_columns = Vec::with_capacity(n_embd * channels.len());
    for i in 0..down.ne[1] {
        let row = dequantized_row(model, down, i);
        down_columns.extend(channels.iter().map(|&c| row[c as usize]));
    }
    let ffn = RestrictedFfn { n_embd, d_low: channels.len(), gate: &gate_rows, up: &up_rows, down: &down_columns };
    LayerProxy::build(&ffn, rank)
        .and_then(|proxy| proxy.to_f16())
        .map_err(|source| CalibrationError::Proxy { layer, source })
}

/// Row `i` of a weight `[n_in, n_out]`, times its scale.
fn dequantized_row(model: &Model, weight: &Weight, i: usize) -> Vec<f32> {
    let n_in = weight.ne[0];
    let n_bytes = row_size(weight.ty, n_in);
    let file = model.file();
    let mut row = dequantize(weight.ty, &file.weight_bytes(weight)[i * n_bytes..][..n_bytes], n_in);
    let scale = file.weight_scale(weight);
    if scale != 1.0 {
        row.iter_mut().for_each(|x| *x *= scale);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(texts: &[usize], bos: Option<u32>, n_tokens: usize, piece: usize) -> Vec<usize> {
        let texts: Vec<Vec<u32>> = texts.iter().map(|&n| (0..n as u32).collect()).collect();
        pieces(&texts, bos, n_tokens, piece).iter().map(Vec::len).collect()
    }

    #[test]
    fn texts_take_turns() {
        assert_eq!(lengths(&[10, 3], None, 100, 4), [4, 3, 4, 2]);
        assert_eq!(lengths(&[10, 3], None, 9, 4), [4, 3, 2]);
        assert_eq!(lengths(&[0, 5], None, 100, 4), [4, 1]);
        assert_eq!(lengths(&[], None, 100, 4), [0; 0]);
    }

    #[test]
    fn every_piece_begins_as_a_text_does() {
        let all = pieces(&[(10..16).collect()], Some(1), 7, 4);
        assert_eq!(all, [vec![1, 10, 11, 12], vec![1, 13, 14]]);
    }
}
