// Marks a graph as one that will be computed again as it is.
//
// The CUDA backend compares every node of a graph with the one that it captured last time, unless both have the same number.
// ggml gives graphs numbers inside its scheduler only, which we do without.

#include "ggml-impl.h"

extern "C" void spts_graph_set_uid(ggml_cgraph * graph) {
    graph->uid = ggml_graph_next_uid();
}
