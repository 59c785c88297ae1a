#include "wide_weights.h"
#include "ggml-backend-impl.h"

#include <algorithm>
#include <vector>

struct WideWeights {
    // src/session/executor.rs counts them when it looks for room.
    static constexpr int BUFFERS = 3;

    struct Buffer {
        nv_bfloat16 * data = nullptr;
        int64_t       size = 0;
        const void *  source = nullptr; // the weight that it holds,
        const float * factors = nullptr; // and its columns' factors
        cudaEvent_t   ready;            // filled

        // Who has read it since it was filled: the last product of each stream. Sessions have streams of their own, and none
        // says anything about another's. Events behind the first n_reads are free for whichever stream reads next.
        struct Read {
            cudaStream_t stream;
            cudaEvent_t  done;
        };
        std::vector<Read> reads;
        size_t            n_reads = 0;

        // To be called behind each product that reads it.
        void was_read(cudaStream_t stream) {
            const auto end   = reads.begin() + n_reads;
            auto       found = std::find_if(reads.begin(), end, [&](const Read & r) { return r.stream == stream; });
            if (found == end) {
                if (n_reads == reads.size()) {
                    cudaEvent_t done;
                    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
                    reads.push_back({stream, done});
                }
                found = reads.begin() + n_reads++;
                found->stream = stream;
            }
            CUDA_CHECK(cudaEventRecord(found->done, stream));
        }

        // False if the device is full. The rest of the device goes on: while another session captures a graph, nobody may wait for
        // all of it.
        bool grow(const int64_t n, cudaStream_t filler) {
            if (n <= size) {
                return true;
            }
            CUDA_CHECK(cudaStreamSynchronize(filler));
            for (; n_reads > 0; n_reads--) {
                CUDA_CHECK(cudaEventSynchronize(reads[n_reads - 1].done));
            }
            CUDA_CHECK(cudaFree(data));
            data   = nullptr;
            source = nullptr;
            size   = 0;
            if (cudaMalloc(&data, n*sizeof(nv_bfloat16)) != cudaSuccess) {
                (void) cudaGetLastError();
                return false;
            }
            size = n;
            return true;
        }

        // Only weights of a model stay as they are.
        bool holds(const ggml_tensor * w, const ColumnFactors & wanted) const {
            return source == w->data && factors == wanted.values && w->buffer != nullptr && w->buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        }

        void fill(const ggml_tensor * w, const ColumnFactors & columns, cudaStream_t stream) {
            for (; n_reads > 0; n_reads--) {
                CUDA_CHECK(cudaStreamWaitEvent(stream, reads[n_reads - 1].done));
            }
            dequantize_16(w->type, w->data, data, ggml_nelements(w), columns, stream);
            CUDA_CHECK(cudaEventRecord(ready, stream));
            source  = w->data;
            factors = columns.values;
        }
    };

    std::mutex   mutex; // held from the choice of a buffer until its product is queued
    cudaStream_t stream = nullptr;
    Buffer       buffers[BUFFERS];
    int          next = 0;

    // Those of a device. They live as long as the process.
    static WideWeights & of(const int device) {
        static WideWeights all[GGML_CUDA_MAX_DEVICES];
        return all[device];
    }

    // The buffer that holds a weight, or the one whose turn it is to take one.
    Buffer & buffer_for(const ggml_tensor * w, const ColumnFactors & factors) {
        const auto holds = [&](const Buffer & b) { return b.holds(w, factors); };
        const auto found = std::find_if(std::begin(buffers), std::end(buffers), holds);
        if (found != std::end(buffers)) {
            return *found;
        }
        Buffer & buffer = buffers[next];
        next = (next + 1) % BUFFERS;
        return buffer;
    }

    void start() {
        if (stream != nullptr) {
            return;
        }
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        for (Buffer & b : buffers) {
            CUDA_CHECK(cudaEventCreateWithFlags(&b.ready, cudaEventDisableTiming));
        }
    }
};

static bool is_captured(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

WideWeight::WideWeight(ggml_backend_cuda_context & ctx, const ggml_tensor * w, const ggml_tensor * factors)
    : ctx(ctx), copy(ctx.pool()), values((const nv_bfloat16 *) w->data) {
    GGML_ASSERT(ggml_is_contiguous(w));
    ColumnFactors columns;
    if (factors != nullptr) {
        GGML_ASSERT(factors->type == GGML_TYPE_F32 && ggml_nelements(factors) == w->ne[0]);
        columns = {(const float *) factors->data, w->ne[0]};
    }
    if ((w->type != GGML_TYPE_BF16 || factors != nullptr) && !make_ahead(w, columns)) {
        values = copy.alloc(ggml_nelements(w));
        dequantize_16(w->type, w->data, copy.get(), ggml_nelements(w), columns, ctx.stream());
    }
}

bool WideWeight::make_ahead(const ggml_tensor * w, const ColumnFactors & factors) {
    // A captured graph is started without this code, which then could not tell when it has read a buffer.
    if (is_captured(ctx.stream())) {
        return false;
    }
    WideWeights & wide = WideWeights::of(ctx.device);
    held = std::unique_lock(wide.mutex);
    wide.start();
    WideWeights::Buffer & buffer = wide.buffer_for(w, factors);
    if (!buffer.holds(w, factors)) {
        if (!buffer.grow(ggml_nelements(w), wide.stream)) {
            held.unlock();
            return false;
        }
        buffer.fill(w, factors, wide.stream);
    }
    CUDA_CHECK(cudaStreamWaitEvent(ctx.stream(), buffer.ready));
    values = buffer.data;
    chosen = (int) (&buffer - wide.buffers);
    return true;
}

WideWeight::~WideWeight() {
    if (chosen >= 0) {
        WideWeights::of(ctx.device).buffers[chosen].was_read(ctx.stream());
    }
}

// Forgets what the buffers hold: to be called when weights are freed, whose addresses may become another model's.
extern "C" void spts_cuda_forget_weights() {
    for (int device = 0; device < ggml_cuda_info().device_count; device++) {
        WideWeights & wide = WideWeights::of(device);
        const std::unique_lock lock(wide.mutex);
        for (auto & buffer : wide.buffers) {
            buffer.source = nullptr;
        }
    }
}

// Lets the kernels of a new backend go before those that fill buffers. Call it before anything is computed.
extern "C" void spts_cuda_put_first(ggml_backend_t backend) {
    auto & ctx = *(ggml_backend_cuda_context *) backend->context;
    ggml_cuda_set_device(ctx.device);
    int least, greatest;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    cudaStream_t & stream = ctx.streams[ctx.device][ctx.curr_stream_no];
    if (stream == nullptr) { // else ggml would make one of no priority
        CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
    }
}
