//! A sidecar for a tiny model, made by the crate's own means, and the same proxies for the reference.

use std::sync::Arc;

use half::f16;
use spts::gguf::{GgmlType, Gguf, GgufWriter};
use spts::method::spts::sidecar::{ARCHITECTURE, Sidecar, TENSORS, VERSION, fingerprint, tensor_name};
use spts_quant::proxy::{LayerProxy, RestrictedFfn, gather_columns, gather_rows};

use super::Pair;
use crate::reference::{Matrix, Proxy};

/// Proxies of every layer of a model.
pub struct Proxies {
    pub sidecar: Arc<Sidecar>,
    pub reference: Vec<Option<Proxy>>,
}

/// What a sidecar file says; tests of broken ones change it.
#[derive(Clone)]
pub struct SidecarFile {
    pub architecture: String,
    pub version: Option<u32>,
    pub fingerprint: Option<String>,
    pub d_low: Option<u32>,
    pub rank: Option<u32>,
    /// Name, shape, data.
    pub tensors: Vec<(String, [usize; 2], Vec<f16>)>,
}

impl SidecarFile {
    /// Truncated SVDs of every layer's FFN, restricted to evenly spread channels.
    pub fn for_model(pair: &Pair, d_low: usize, rank: usize) -> SidecarFile {
        let n_embd = pair.tiny.n_embd;
        let mut tensors = Vec::new();
        for (il, layer) in pair.reference.layers.iter().enumerate() {
            let n_ff = layer.ffns[0].0.weight.n_out;
            let channels: Vec<u32> = (0..d_low).map(|i| (i * n_ff / d_low) as u32).collect();
            let rows = |m: &Matrix| gather_rows(&m.data, n_embd, n_ff, &channels).expect("channels of the layer");
            // Of a mixture's first expert: any scores do here.
            let (gate, up, down) = &layer.ffns[0];
            let (gate, up) = (rows(&gate.weight), rows(&up.weight));
            let down = gather_columns(&down.weight.data, n_ff, n_embd, &channels).expect("channels of the layer");
            let ffn = RestrictedFfn { n_embd, d_low, gate: &gate, up: &up, down: &down };
            let proxy = LayerProxy::build(&ffn, rank).and_then(|p| p.to_f16()).expect("a proxy");
            let shapes = [[n_embd, 2 * rank], [rank, d_low], [rank, d_low], [d_low, rank]];
            let data = [proxy.u_gu, proxy.v_gate, proxy.v_up, proxy.v_down];
            for ((name, shape), data) in TENSORS.into_iter().zip(shapes).zip(data) {
                tensors.push((tensor_name(il, name), shape, data));
            }
        }
        SidecarFile {
            architecture: ARCHITECTURE.into(),
            version: Some(VERSION),
            fingerprint: Some(fingerprint(pair.model.gguf())),
            d_low: Some(d_low as u32),
            rank: Some(rank as u32),
            tensors,
        }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = GgufWriter::new();
        let mut fill = || {
            w.set_str("general.architecture", &self.architecture)?;
            for (key, value) in [("spts.version", self.version), ("spts.d_low", self.d_low), ("spts.rank", self.rank)] {
                if let Some(value) = value {
                    w.set_u32(key, value)?;
                }
            }
            if let Some(fingerprint) = &self.fingerprint {
                w.set_str("spts.fingerprint", fingerprint)?;
            }
            for (name, shape, data) in &self.tensors {
                let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                w.add_tensor_bytes(name, &shape.map(|d| d as u64), GgmlType::F16, bytes)?;
            }
            Ok::<(), spts::gguf::GgufError>(())
        };
        fill().expect("a file that can be written");
        let mut bytes = Vec::new();
        w.write_to(&mut bytes, "sidecar", |_, _| Ok(())).expect("memory takes all bytes");
        bytes
    }

    /// The proxies as both sides take them.
    pub fn open(&self) -> Proxies {
        let gguf = Gguf::from_bytes(self.to_bytes(), "sidecar").expect("a valid file");
        let matrix = |il: usize, name: &str| {
            let wanted = tensor_name(il, name);
            let (_, [n_in, n_out], data) = self.tensors.iter().find(|t| t.0 == wanted)?;
            Some(Matrix { n_in: *n_in, n_out: *n_out, data: data.iter().map(|x| x.to_f32()).collect() })
        };
        let proxy = |il: usize| {
            let [u_gu, v_gate, v_up, v_down] = TENSORS.map(|name| matrix(il, name));
            Some(Proxy { u_gu: u_gu?, v_gate: v_gate?, v_up: v_up?, v_down: v_down?, f16_inputs: true })
        };
        let reference = (0..self.tensors.len() / TENSORS.len()).map(proxy).collect();
        Proxies { sidecar: Arc::new(Sidecar::from_gguf(gguf).expect("a sidecar")), reference }
    }
}
