//! Gemma 4: heads of two sizes by the kind of a layer, normalised values, a factor on what leaves a layer; in the small ones
//! features of every token for each layer, and last layers that read earlier ones' keys.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::ffn::Ffn;
use super::hparams::HParams;
use super::stack::{Architecture, Site, Stack};
use super::table::{Role, WeightTable};

struct Layer {
    attn_norm: WeightId,
    q: Projection,
    q_norm: WeightId,
    own: Option<OwnKv>,
    o: Projection,
    post_attn_norm: WeightId,
    ffn: Ffn,
    token_features: Option<TokenFeatures>,
    out_scale: Option<WeightId>,
    rope_factors: Option<WeightId>,
}

/// Keys and values of a layer that has its own. Without a matrix of their own values are the keys before norm and rope.
struct OwnKv {
    k: Projection,
    k_norm: WeightId,
    v: Option<Projection>,
}

/// What a layer has of every token of the vocabulary, and how it joins the residual stream.
struct TokenFeatures {
    /// `[n_embd_per_layer * n_layer, n_vocab]`, all layers' beside each other.
    rows: WeightId,
    from_embd: Projection,
    norm: WeightId,
    gate: Projection,
    back: Projection,
    post_norm: WeightId,
}

/// A loaded model of this architecture.
pub struct Gemma4(Stack<Layer>);

impl Gemma4 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_layer, n_wide) = (hp.shape.n_layer, hp.shape.n_embd_per_layer * hp.shape.n_layer);
        let embeddings = (n_wide > 0).then(|| {
            table.set_layer(None);
            let rows = table.matrix("per_layer_token_embd.weight", n_wide, hp.shape.n_vocab, Role::LayerRows)?;
            let norm = table.vector("per_layer_proj_norm.weight", hp.shape.n_embd_per_layer)?;
            table.check_columns("per_layer_token_embd.weight", hp.shape.n_embd_per_layer)?;
            Ok::<_, ModelError>([rows, norm])
        });
        let embeddings = embeddings.transpose()?;
        table.set_layer(None);
        let factors = match (0..n_layer).any(|l| !hp.shape.is_swa(l)) {
            true => Some(table.vector("rope_freqs.weight", hp.rope.n_rot / 2)?),
            false => None,
        };
        let layer = |table: &mut WeightTable, il: usize| {
            let (n_embd, sizes) = (hp.shape.n_embd, hp.shape.sizes(il));
            let n_q = hp.shape.n_head * sizes.head_dim;
            let own = (hp.shape.kv_layer(il) == il).then(|| OwnKv::load(hp, table, il)).transpose()?;
            if own.is_none() {
                // Files may carry what such a layer does not use.
                ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"].iter().for_each(|name| table.tolerate(name));
            }
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                q: table.projection("attn_q", n_embd, n_q)?,
                q_norm: table.vector("attn_q_norm.weight", sizes.head_dim)?,
                own,
                o: table.projection("attn_output", n_q, n_embd)?,
                post_attn_norm: table.vector("post_attention_norm.weight", n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Gelu)?,
                token_features: embeddings.map(|all| TokenFeatures::load(hp, table, il, all)).transpose()?,
                out_scale: table.optional_vector("layer_output_scale.weight", 1)?,
                rope_factors: factors.filter(|_| !hp.shape.is_swa(il)),
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
    }
}

impl OwnKv {
    fn load(hp: &HParams, table: &mut WeightTable, il: usize) -> Result<Self, ModelError> {
        let (n_embd, n_kv) = (hp.shape.n_embd, hp.shape.n_embd_kv(il));
        let v = table.has("attn_v.weight").then(|| table.projection("attn_v", n_embd, n_kv));
        Ok(Self {
            k: table.projection("attn_k", n_embd, n_kv)?,
            k_norm: table.vector("attn_k_norm.weight", hp.shape.sizes(il).head_dim)?,
            v: v.transpose()?,
        })
    }

    /// Adds keys and values of the stream x.
    fn build(&self, b: &mut Builder, hp: &HParams, x: NodeId, at: &Site, rope: Rope) -> [NodeId; 2] {
        let (head_dim, eps) = (hp.shape.sizes(at.il).head_dim, hp.rms_eps);
        let projected = b.linear(self.k, x, "Kcur");
        let k = b.head_norm(self.k_norm, eps, head_dim, projected, "Kcur_normed");
        let k = b.push(Op::Rope { head_dim, rope }, &[k, at.pos], "Kcur_rope");
        let v = self.v.map_or(projected, |v| b.linear(v, x, "Vcur"));
        [k, b.push(Op::RmsNorm { weight: None, eps, group: head_dim }, &[v], "Vcur_normed")]
    }
}

impl TokenFeatures {
    fn load(hp: &HParams, table: &mut WeightTable, il: usize, all: [WeightId; 2]) -> Result<Self, ModelError> {
        let (n_embd, n, n_layer) = (hp.shape.n_embd, hp.shape.n_embd_per_layer, hp.shape.n_layer);
        let [rows, norm] = all;
        let weight = table.part_of_all("per_layer_model_proj.weight", n_embd, n * n_layer, n * il..n * (il + 1))?;
        Ok(Self {
            rows,
            from_embd: Projection { weight, scale: None, bias: None, n_out: n },
            norm,
            gate: table.projection("inp_gate", n_embd, n)?,
            back: table.projection("proj", n, n_embd)?,
            post_norm: table.vector("post_norm.weight", n_embd)?,
        })
    }

    /// Adds this layer's features of its tokens: those of the table and those made from the embedding, in equal parts.
    /// `[n_embd_per_layer, n]`
    fn of_tokens(&self, b: &mut Builder, hp: &HParams, at: &Site) -> NodeId {
        let (n_embd, n) = (hp.shape.n_embd, hp.shape.n_embd_per_layer);
        let embd = b.embed(at.token_embd, n_embd, (n_embd as f32).sqrt(), at.tokens);
        let made = b.linear(self.from_embd, embd, "per_layer_proj");
        let made = b.push(Op::Scale { factor: 1.0 / (n_embd as f32).sqrt() }, &[made], "per_layer_proj_scaled");
        let made = b.rms_norm(self.norm, hp.rms_eps, made, "per_layer_proj_normed");
        let looked_up = Op::Embed { weight: self.rows, first: n * at.il, scale: (n as f32).sqrt() };
        let n_rows = b.node(at.tokens).n_rows;
        let looked_up = b.push_sized(looked_up, &[at.tokens], n, n_rows, "inp_per_layer_selected");
        let both = b.push(Op::Add, &[made, looked_up], "inp_per_layer_sum");
        b.push(Op::Scale { factor: 0.5f32.sqrt() }, &[both], "inp_per_layer")
    }

    /// Adds them to the residual stream h, as far as it lets them in.
    fn join(&self, b: &mut Builder, hp: &HParams, h: NodeId, at: &Site) -> NodeId {
        let features = self.of_tokens(b, hp, at);
        let gate = b.linear(self.gate, h, "per_layer_gate");
        let gated = b.push(Op::Glu { act: Activation::Gelu }, &[gate, features], "per_layer_gated");
        let back = b.linear(self.back, gated, "per_layer_back");
        let back = b.rms_norm(self.post_norm, hp.rms_eps, back, "per_layer_embd_out");
        b.push(Op::Add, &[h, back], "per_layer_sum")
    }
}

impl Layer {
    /// The layer's rope, with the divisors that full attention has.
    fn rope(&self, hp: &HParams, il: usize) -> Rope {
        Rope { factors: self.rope_factors, ..hp.layer_rope(il) }
    }

    fn build(&self, b: &mut Builder, hp: &HParams, at: Site) -> LayerAnchors {
        let (head_dim, rope) = (hp.shape.sizes(at.il).head_dim, self.rope(hp, at.il));
        let x = b.rms_norm(self.attn_norm, hp.rms_eps, at.inp, "attn_norm");
        let kv = self.own.as_ref().map(|own| own.build(b, hp, x, &at, rope)).or(at.shared_kv);
        let [k, v] = kv.expect("a layer has keys, or an earlier one has");
        let q = b.linear(self.q, x, "Qcur");
        let q = b.head_norm(self.q_norm, hp.rms_eps, head_dim, q, "Qcur_normed");
        let q = b.push(Op::Rope { head_dim, rope }, &[q, at.pos], "Qcur_rope");
        let attended = at.attend(b, hp, hp.heads(at.il), [q, k, v], self.o);
        let built = attended.normed(b, hp, self.post_attn_norm).then_ffn(b, hp, &self.ffn);
        let joined = self.token_features.as_ref().map_or(built.out, |features| features.join(b, hp, built.out, &at));
        let out = self.out_scale.map_or(joined, |weight| b.push(Op::ScaleBy { weight }, &[joined], "out_scaled"));
        LayerAnchors { out, ..built }
    }
}

impl Architecture for Gemma4 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.0.hp;
        self.0.graph(n_tokens, (hp.shape.n_embd as f32).sqrt(), |b, layer, at| layer.build(b, hp, at))
    }
}
