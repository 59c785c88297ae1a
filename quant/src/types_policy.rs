//! Which tensor type each weight gets when a model is quantized.
//!
//! The mixes follow the conventions of the GGUF ecosystem, so that a file made here has the layout that
//! users of Q4_K_M and the like expect (llama.cpp's quantizer without an importance matrix, dense models):
//!
//! - 1-D tensors and norms stay as they are; so do routing, convolutions and other tiny 2-D tensors (of a gated delta net
//!   `ssm_conv1d`, `ssm_a`, `ssm_dt` and `ssm_norm`; its projections are weights like others, `attn_qkv` as below);
//! - the output head, and the token embedding when it is the head as well, is Q6_K (Q8_0 in a Q8_0 file);
//! - `_M` mixes give attn_v (or a fused attn_qkv) and ffn_down Q6_K in the layers of [`more_bits`];
//! - Q4_K_S gives attn_v of the first four layers and ffn_down of the first eighth Q5_K;
//! - attn_v of 70B-class models (80 layers, 8 query heads per KV head) is at least Q5_K: it is small there;
//! - MXFP4_MOE gives the matrices of experts MXFP4 and all others Q8_0;
//! - rows that are no multiple of 256 cannot be K-quants: Q4_K becomes Q5_0, Q5_K becomes Q5_1,
//!   Q6_K becomes Q8_0; rows that are no multiple of 32 either become F16.

/// A tensor type by its GGUF name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    MXFP4,
}

impl TensorType {
    /// All types that the policy chooses from.
    pub const ALL: [Self; 10] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::MXFP4,
    ];

    /// The type's name in GGUF tools, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::MXFP4 => "MXFP4",
        }
    }

    /// Values in a block; a row has to be a multiple of it.
    pub fn block_size(self) -> u64 {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::MXFP4 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::MXFP4 => 17,
        }
    }
}

/// A mix of tensor types, as the user asks for it by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Preset {
    MXFP4_MOE,
    Q4_0,
    Q4_K_S,
    Q4_K_M,
    Q5_K_M,
    Q6_K,
    Q8_0,
    F16,
    F32,
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Self; 9] = [
        Self::MXFP4_MOE,
        Self::Q4_0,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_M,
        Self::Q6_K,
        Self::Q8_0,
        Self::F16,
        Self::F32,
    ];

    /// The preset's name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MXFP4_MOE => "MXFP4_MOE",
            Self::Q4_0 => "Q4_0",
            Self::Q4_K_S => "Q4_K_S",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q5_K_M => "Q5_K_M",
            Self::Q6_K => "Q6_K",
            Self::Q8_0 => "Q8_0",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// The preset of this name in either case; `None` if there is none. `Q4_K` and `Q5_K` are the `_M` mixes, as users of
    /// llama.cpp know them.
    pub fn from_name(name: &str) -> Option<Self> {
        for (alias, preset) in [("Q4_K", Self::Q4_K_M), ("Q5_K", Self::Q5_K_M)] {
            if name.eq_ignore_ascii_case(alias) {
                return Some(preset);
            }
        }
        Self::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(name))
    }

    /// Value of the metadata key `general.file_type`.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::MXFP4_MOE => 38,
        }
    }

    /// The type that the mix gives most tensors; in a mixture of experts most weights, for MXFP4_MOE.
    pub fn base(self) -> TensorType {
        match self {
            Self::MXFP4_MOE => TensorType::MXFP4,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_K_S | Self::Q4_K_M => TensorType::Q4_K,
            Self::Q5_K_M => TensorType::Q5_K,
            Self::Q6_K => TensorType::Q6_K,
            Self::Q8_0 => TensorType::Q8_0,
            Self::F16 => TensorType::F16,
            Self::F32 => TensorType::F32,
        }
    }
}

/// The numbers of a model that the choice of a type depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Number of layers.
    pub n_layer: usize,
    /// Number of query heads.
    pub n_head: usize,
    /// Number of key and value heads.
    pub n_head_kv: usize,
    /// Whether the token embedding is the output head as well (the file has no `output.weight`).
    pub tied_output: bool,
}

/// Whether a tensor keeps its type when the model is quantized, or which one it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The tensor keeps its type.
    Keep,
    /// The tensor is converted to another type.
    To {
        /// The type that it gets.
        ty: TensorType,
        /// The type that the mix has for it, if the row length does not allow that one.
        instead_of: Option<TensorType>,
    },
}

/// Whether `_M` mixes give a layer more bits: they do in the first and the last eighth, and in every third layer between.
pub fn more_bits(layer: usize, n_layer: usize) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// The type for tensor `name` of shape `shape` (ggml order: `shape[0]` is the row length).
pub fn choose_type(preset: Preset, name: &str, shape: &[u64], model: &ModelShape) -> Choice {
    if !convertible(name, shape) {
        return Choice::Keep;
    }
    let wanted = wanted_type(preset, name, shape, model);
    let ty = fit(wanted, shape[0]);
    Choice::To { ty, instead_of: (ty != wanted).then_some(wanted) }
}

/// Name parts of small 2-D weights that are left alone.
const KEPT: [&str; 5] =
    ["_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "attn_rel_b.weight", "per_layer_model_proj"];

fn convertible(name: &str, shape: &[u64]) -> bool {
    let dims = shape.iter().rposition(|&n| n > 1).map_or(1, |i| i + 1);
    name.ends_with("weight")
        && dims >= 2
        && !KEPT.iter().any(|part| name.contains(part))
        && !matches!(name, "position_embd.weight" | "token_types.weight")
}

fn wanted_type(preset: Preset, name: &str, shape: &[u64], model: &ModelShape) -> TensorType {
    use TensorType::{F16, F32, Q4_K, Q5_K, Q6_K, Q8_0};
    let base = preset.base();
    if matches!(base, F16 | F32) {
        return base;
    }
    if preset == Preset::MXFP4_MOE {
        return if shape.get(2).is_some_and(|&n| n > 1) { base } else { Q8_0 };
    }
    // Features of tokens for each layer go with the embedding.
    let is_embedding = matches!(name, "token_embd.weight" | "per_layer_token_embd.weight");
    let is_head = name == "output.weight" || (model.tied_output && is_embedding);
    if is_head {
        let fits = shape[0].is_multiple_of(base.block_size());
        return if base == Q8_0 || !fits { Q8_0 } else { Q6_K };
    }
    let Some(layer) = layer_of(name) else {
        return base;
    };
    let n_layer = model.n_layer;
    if name.contains("attn_v.weight") || name.contains("attn_qkv.weight") {
        let ty = match preset {
            Preset::Q4_K_M | Preset::Q5_K_M if more_bits(layer, n_layer) => Q6_K,
            Preset::Q4_K_S if layer < 4 => Q5_K,
            _ => base,
        };
        let is_70b = n_layer == 80 && model.n_head == model.n_head_kv.saturating_mul(8);
        if is_70b && ty == Q4_K { Q5_K } else { ty }
    } else if name.contains("ffn_down") {
        match preset {
            Preset::Q4_K_M | Preset::Q5_K_M if more_bits(layer, n_layer) => Q6_K,
            Preset::Q4_K_S if layer < n_layer / 8 => Q5_K,
            _ => base,
        }
    } else {
        base
    }
}

/// The layer of `blk.N.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// `wanted`, or the nearest type whose blocks divide rows of `row` values.
fn fit(wanted: TensorType, row: u64) -> TensorType {
    use TensorType::{F16, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    if row.is_multiple_of(wanted.block_size()) {
        return wanted;
    }
    let smaller = match wanted {
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    if row.is_multiple_of(smaller.block_size()) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LLAMA: ModelShape = ModelShape { n_layer: 32, n_head: 32, n_head_kv: 8, tied_output: false };

    fn name_of(preset: Preset, name: &str, shape: &[u64], model: &ModelShape) -> &'static str {
        match choose_type(preset, name, shape, model) {
            Choice::Keep => "keep",
            Choice::To { ty, .. } => ty.name(),
        }
    }

    #[test]
    fn llama_8b_mixes() {
        let ty = |preset, name: &str, ne0| name_of(preset, name, &[ne0, 4096], &LLAMA);
        assert_eq!(ty(Preset::Q4_K_M, "output.weight", 4096), "Q6_K");
        assert_eq!(ty(Preset::Q4_K_M, "token_embd.weight", 4096), "Q4_K");
        assert_eq!(ty(Preset::Q4_K_M, "blk.0.attn_v.weight", 4096), "Q6_K");
        assert_eq!(ty(Preset::Q4_K_M, "blk.4.attn_v.weight", 4096), "Q4_K");
        assert_eq!(ty(Preset::Q4_K_M, "blk.6.ffn_down.weight", 14336), "Q6_K");
        assert_eq!(ty(Preset::Q4_K_M, "blk.31.ffn_down.weight", 14336), "Q6_K");
        assert_eq!(ty(Preset::Q4_K_M, "blk.0.ffn_up.weight", 4096), "Q4_K");
        assert_eq!(ty(Preset::Q4_K_S, "blk.3.attn_v.weight", 4096), "Q5_K");
        assert_eq!(ty(Preset::Q4_K_S, "blk.4.ffn_down.weight", 14336), "Q4_K");
        assert_eq!(ty(Preset::Q5_K_M, "blk.5.attn_v.weight", 4096), "Q5_K");
        assert_eq!(ty(Preset::Q4_0, "blk.0.attn_v.weight", 4096), "Q4_0");
        assert_eq!(ty(Preset::Q4_0, "output.weight", 4096), "Q6_K");
        assert_eq!(ty(Preset::Q8_0, "output.weight", 4096), "Q8_0");
        assert_eq!(ty(Preset::Q6_K, "blk.9.attn_q.weight", 4096), "Q6_K");
        assert_eq!(ty(Preset::F16, "output.weight", 4096), "F16");
        assert_eq!(ty(Preset::F32, "output.weight", 4096), "F32");
        // The customary file has 17 of 32 layers with more bits.
        assert_eq!((0..32).filter(|&l| more_bits(l, 32)).count(), 16);
    }

    #[test]
    fn small_rows_and_tied_heads() {
        let qwen = ModelShape { n_layer: 24, n_head: 14, n_head_kv: 2, tied_output: true };
        let ty = |preset, name: &str, ne0| name_of(preset, name, &[ne0, 896], &qwen);
        assert_eq!(ty(Preset::Q4_K_M, "token_embd.weight", 896), "Q8_0");
        assert_eq!(ty(Preset::Q4_0, "token_embd.weight", 896), "Q8_0");
        assert_eq!(ty(Preset::Q4_K_M, "blk.9.attn_q.weight", 896), "Q5_0");
        assert_eq!(ty(Preset::Q4_K_M, "blk.0.attn_v.weight", 896), "Q8_0");
        assert_eq!(ty(Preset::Q5_K_M, "blk.9.ffn_up.weight", 896), "Q5_1");
        assert_eq!(ty(Preset::Q4_K_M, "blk.0.ffn_down.weight", 4864), "Q6_K");
        assert_eq!(ty(Preset::Q8_0, "blk.0.attn_q.weight", 36), "F16");
        // Small Gemma 4 have features of tokens for each layer beside the embedding.
        assert_eq!(ty(Preset::Q4_K_M, "per_layer_token_embd.weight", 8960), "Q6_K");
        assert_eq!(ty(Preset::Q4_K_M, "per_layer_model_proj.weight", 1536), "keep");
        assert_eq!(name_of(Preset::Q4_K_M, "per_layer_token_embd.weight", &[8960, 262_144], &LLAMA), "Q4_K");
    }

    #[test]
    fn experts_in_mxfp4() {
        let ty = |name: &str, shape: &[u64]| name_of(Preset::MXFP4_MOE, name, shape, &LLAMA);
        assert_eq!(ty("blk.0.ffn_down_exps.weight", &[2880, 2880, 32]), "MXFP4");
        assert_eq!(ty("blk.0.ffn_gate_exps.weight", &[2880, 2880, 32]), "MXFP4");
        assert_eq!(ty("blk.0.ffn_up_exps.weight", &[2872, 2880, 32]), "F16");
        assert_eq!(ty("blk.0.ffn_gate_inp.weight", &[2880, 32]), "keep");
        assert_eq!(ty("blk.0.ffn_up_exps.bias", &[2880, 32]), "keep");
        assert_eq!(ty("blk.0.attn_v.weight", &[2880, 512]), "Q8_0");
        assert_eq!(ty("token_embd.weight", &[2880, 201_088]), "Q8_0");
        assert_eq!(ty("output.weight", &[2880, 201_088]), "Q8_0");
        // The others make no difference between experts and other matrices.
        assert_eq!(name_of(Preset::Q4_0, "blk.0.ffn_up_exps.weight", &[2880, 2880, 32], &LLAMA), "Q4_0");
    }

    #[test]
    fn what_is_kept() {
        for (name, shape) in [
            ("blk.0.attn_norm.weight", &[4096u64][..]),
            ("blk.0.attn_q.bias", &[4096]),
            ("blk.0.attn_q_norm.weight", &[128, 2]),
            ("rope_freqs.weight", &[64]),
            ("blk.0.ffn_gate_inp.weight", &[4096, 8]),
            ("blk.0.ffn_gate_inp_shexp.weight", &[4096]),
            ("blk.0.ssm_conv1d.weight", &[4, 8192]),
            ("blk.0.ssm_a", &[32]),
            ("blk.0.ssm_dt.bias", &[32]),
            ("blk.0.ssm_norm.weight", &[128]),
            ("output_norm.weight", &[4096, 1]),
            ("strange.weight", &[]),
        ] {
            assert_eq!(choose_type(Preset::Q4_0, name, shape, &LLAMA), Choice::Keep, "{name}");
        }
    }

    /// Every layer has either attn_v or attn_qkv: they are counted together.
    #[test]
    fn hybrids_with_recurrent_layers() {
        let hybrid = ModelShape { n_layer: 40, n_head: 16, n_head_kv: 2, tied_output: false };
        let ty = |preset, name: &str, n_out| name_of(preset, name, &[2048, n_out], &hybrid);
        for (name, n_out, m, s) in [
            ("blk.0.attn_qkv.weight", 8192, "Q6_K", "Q5_K"),
            ("blk.3.attn_v.weight", 512, "Q6_K", "Q5_K"),
            ("blk.5.attn_qkv.weight", 8192, "Q4_K", "Q4_K"),
            ("blk.7.attn_v.weight", 512, "Q6_K", "Q4_K"),
            ("blk.8.attn_gate.weight", 4096, "Q4_K", "Q4_K"),
            ("blk.8.ssm_beta.weight", 32, "Q4_K", "Q4_K"),
            ("blk.8.ssm_alpha.weight", 32, "Q4_K", "Q4_K"),
            ("blk.8.ffn_gate_shexp.weight", 512, "Q4_K", "Q4_K"),
            ("blk.4.ffn_down_shexp.weight", 2048, "Q6_K", "Q5_K"),
        ] {
            assert_eq!((ty(Preset::Q4_K_M, name, n_out), ty(Preset::Q4_K_S, name, n_out)), (m, s), "{name}");
        }
        assert_eq!(name_of(Preset::Q4_K_M, "blk.8.ffn_down_exps.weight", &[512, 2048, 256], &hybrid), "Q4_K");
        assert_eq!(name_of(Preset::Q4_K_M, "blk.8.ssm_out.weight", &[4096, 2048], &hybrid), "Q4_K");
    }

    #[test]
    fn attn_v_of_70b() {
        let big = ModelShape { n_layer: 80, n_head: 64, n_head_kv: 8, tied_output: false };
        let ty = |name: &str| name_of(Preset::Q4_K_M, name, &[8192, 1024], &big);
        assert_eq!(ty("blk.10.attn_v.weight"), "Q5_K");
        assert_eq!(ty("blk.10.attn_k.weight"), "Q4_K");
    }

    #[test]
    fn names_round_trip() {
        for p in Preset::ALL {
            assert_eq!(Preset::from_name(&p.name().to_lowercase()), Some(p));
        }
        assert_eq!(Preset::from_name("q4_k"), Some(Preset::Q4_K_M));
        assert_eq!(Preset::from_name("Q3_K"), None);
    }

    proptest! {
        #[test]
        fn rows_are_always_whole_blocks(
            preset in prop::sample::select(Preset::ALL.to_vec()),
            ne0 in 1u64..20_000,
            layer in 0usize..40,
            part in prop::sample::select(vec!["attn_v", "attn_q", "ffn_down", "ffn_up"]),
            tied in any::<bool>(),
        ) {
            let model = ModelShape { tied_output: tied, ..LLAMA };
            for name in [format!("blk.{layer}.{part}.weight"), "token_embd.weight".into()] {
                if let Choice::To { ty, .. } = choose_type(preset, &name, &[ne0, 7], &model) {
                    prop_assert!(ne0.is_multiple_of(ty.block_size()));
                }
            }
        }
    }
}
