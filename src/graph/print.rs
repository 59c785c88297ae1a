//! A stable text of a graph, one node a line, for snapshot tests and `plan --graph`.

use std::fmt::Write;

use super::ir::*;

/// Prints the graph; `weight_name` gives the name of a weight.
pub fn print(graph: &Graph, weight_name: impl Fn(WeightId) -> String) -> String {
    let mut out = String::new();
    let mut layer = None;
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.layer != layer {
            layer = node.layer;
            match layer {
                Some(l) => writeln!(out, "layer {l}:"),
                None => writeln!(out, "model:"),
            }
            .expect("a String takes all text");
        }
        line(&mut out, i, node, &weight_name);
    }
    out
}

fn line(out: &mut String, i: usize, node: &Node, weight_name: &impl Fn(WeightId) -> String) {
    let mut args: Vec<String> = node.src.iter().map(|s| s.to_string()).collect();
    let by = |norm: WeightId| format!("norm={}", weight_name(norm));
    match &node.op {
        Op::Embed { weight, first, scale } => {
            args.push(weight_name(*weight));
            args.extend((*first > 0).then(|| format!("first={first}")));
            if *scale != 1.0 {
                args.push(format!("scale={scale}"));
            }
        }
        Op::RmsNorm { weight, group, .. } => {
            args.extend(weight.map(&weight_name));
            if *group != node.n_feat {
                args.push(format!("group={group}"));
            }
        }
        Op::Linear { weight, scale, bias, norm } => {
            args.push(weight_name(*weight));
            args.extend(scale.map(|scale| format!("scale={}", weight_name(scale))));
            args.extend(bias.map(&weight_name));
            args.extend(norm.map(by));
        }
        Op::Rope { rope, .. } => args.push(format!("base={}", rope.freq_base)),
        Op::Attention { layer, heads, window, blocks } => {
            args.extend((node.layer != Some(*layer)).then(|| format!("cache={layer}")));
            args.push(format!("heads={}:{}", heads.n_head, heads.n_head_kv));
            args.extend(window.map(|w| format!("window={w}")));
            args.extend(blocks.map(|share| format!("sparse:{share}")));
            args.extend(heads.sinks.map(|sinks| format!("sinks={}", weight_name(sinks))));
        }
        Op::Features { group, start, len } => args.push(format!("{start}..{} of {group}", start + len)),
        Op::DeltaNet { heads, conv, dt, a, .. } => {
            args.extend([*conv, *dt, *a].map(&weight_name));
            args.push(format!("heads={}:{}", heads.n_head_v, heads.n_head_k));
            args.extend(heads.grouped.then(|| "grouped".to_owned()));
        }
        Op::GatedFfn { gate, up, down, act, norm } => {
            args.extend([*gate, *up, *down].map(&weight_name));
            args.push(format!("{act:?}").to_lowercase());
            args.extend(norm.map(by));
        }
        Op::Experts { router, gate, up, down, n_expert, n_used, act, biases, scales } => {
            args.extend([*router, *gate, *up, *down].map(&weight_name));
            args.push(format!("{act:?}").to_lowercase());
            args.push(format!("{n_used} of {n_expert}"));
            args.extend(biases.map(|_| "biases".to_owned()));
            args.extend(scales.map(|scales| format!("scales={}", weight_name(scales))));
        }
        Op::ProxyNorm { act, norm, .. } => {
            args.push(format!("{act:?}").to_lowercase());
            args.extend(norm.map(by));
        }
        Op::Glu { act } => args.push(format!("{act:?}").to_lowercase()),
        Op::ProbeScores { join: Join::Max, .. } => args.push(Join::Max.to_string()),
        Op::ScaleBy { weight } => args.push(weight_name(*weight)),
        Op::Softcap { cap } => args.push(format!("cap={cap}")),
        Op::Scale { factor } => args.push(format!("factor={factor}")),
        Op::Temperature { every, scale } => args.push(format!("every={every}, scale={scale}")),
        Op::AddScaled { factor } => args.push(format!("factor={factor}")),
        Op::PoolScores { pool } => args.push(pool.to_string()),
        Op::TopK { m, first, forced } => {
            args.push(format!("m={m}, forced={forced}"));
            args.extend((*first > 0).then(|| format!("first={first}")));
        }
        Op::RandomScores { seed, .. } => args.push(format!("seed={seed}")),
        Op::LastRows { rows } => args.push(format!("rows={rows}")),
        _ => {}
    }
    let dtype = match node.dtype {
        DType::F32 => "f32",
        DType::I32 => "i32",
        DType::Bf16 => "bf16",
    };
    let suffix = node.layer.map(|l| format!("-{l}")).unwrap_or_default();
    writeln!(
        out,
        "  %{i} = {}({}) : {dtype}[{}, {}]  {}{suffix}",
        node.op.name(),
        args.join(", "),
        node.n_feat,
        node.n_rows,
        node.name
    )
    .expect("a String takes all text");
}
