// Recurrences over positions in CUDA C++, for GPUs on whose host Triton does not work: no C compiler, say, or a release
// without what a kernel needs. NVRTC, which torch brings, compiles this file (bnb_ds/recurrences/cuda.py).
//
// One block takes one sequence through all steps. The kernels of graphs are those of bnb_ds/dag/triton.py, where the
// variables are explained; `best_states` is bnb_ds.ctc.recursion.best_states. No atomics are used, so equal input gives
// equal bits. Whoever compiles this defines `real`, float or double, beforehand.
//
// Lanes (threadIdx.x) take targets that are side by side, and groups (threadIdx.y) share the sources of each.

#define LANES 32
#define GROUPS 8
// -infinity; NVRTC reads no header in which it stands
#define NOTHING log((real)0)

typedef long long int64;

// 0 in place of -inf and NaN
__device__ inline real finite_or_zero(real value) { return value > NOTHING ? value : (real)0; }

// NaN counts as less than everything, as in Triton: it shows in the sums
__device__ inline real larger(real one, real other) { return one > other || !(other == other) ? one : other; }

// One more number for logsumexp: the largest one so far, and the sum of exp(number - largest).
__device__ inline void add_up(real &best, real &total, real value, real count) {
    const real high = larger(best, value), finite = high == NOTHING ? (real)0 : high;
    total = total * exp(best - finite) + count * exp(value - finite);
    best = high;
}

// The largest number of lanes, and then the same in all threads.
__device__ inline real largest_of(real *shared, real value) {
    if (threadIdx.y == 0) shared[threadIdx.x] = value;
    __syncthreads();
    real high = shared[0];
    for (int lane = 1; lane < LANES; ++lane) high = larger(high, shared[lane]);
    return high;
}

extern "C" __global__ void dag_forward(
    const real *emissions, const real *links, const int64 *last_slot, const int64 *last_step, real *ways, real *shifts,
    int64 stride_B, int64 stride_L, int64 batch_size, int64 num_slots
) {
    __shared__ real bests[GROUPS][LANES], totals[GROUPS][LANES], highs[LANES];
    const int64 sequence = blockIdx.x, end = last_slot[sequence], last = last_step[sequence];
    const int lane = threadIdx.x, group = threadIdx.y;
    if (last < 0) return;
    links += sequence * stride_B;
    int64 row = sequence * num_slots;
    real shift = finite_or_zero(emissions[row]);
    if (lane == 0 && group == 0) {
        ways[row] = emissions[row];
        shifts[sequence] = shift;
    }
    for (int64 step = 1; step <= last; ++step) {
        __syncthreads();  // other threads wrote what is read now
        const int64 before = row, furthest = end - last + step;
        row += (int64)batch_size * num_slots;
        real high = NOTHING;
        for (int64 begin = step; begin <= furthest; begin += LANES) {
            const int64 target = begin + lane;
            real best = NOTHING, total = 0;
            if (target <= furthest)
                for (int64 source = step - 1 + group; source < target; source += GROUPS)
                    add_up(best, total, ways[before + source] - shift + links[source * stride_L + target], 1);
            bests[group][lane] = best;
            totals[group][lane] = total;
            __syncthreads();
            if (group == 0 && target <= furthest) {
                for (int other = 1; other < GROUPS; ++other) add_up(best, total, bests[other][lane], totals[other][lane]);
                const real way = finite_or_zero(best) + log(total) + emissions[row + target];
                ways[row + target] = way;
                high = larger(high, way);
            }
            __syncthreads();
        }
        shift = finite_or_zero(largest_of(highs, high));
        if (lane == 0 && group == 0) shifts[step * batch_size + sequence] = shift;
    }
}

extern "C" __global__ void dag_backward(
    const real *emissions, const real *links, const int64 *last_slot, const int64 *last_step, real *ahead,
    int64 stride_B, int64 stride_L, int64 batch_size, int64 num_slots
) {
    __shared__ real bests[GROUPS][LANES], totals[GROUPS][LANES], highs[LANES];
    const int64 sequence = blockIdx.x, end = last_slot[sequence], last = last_step[sequence];
    const int lane = threadIdx.x, group = threadIdx.y;
    if (last < 0) return;
    links += sequence * stride_B;
    int64 row = (last * batch_size + sequence) * num_slots;
    if (lane == 0 && group == 0) ahead[row + end] = 0;
    real shift = 0;
    for (int64 back = 1; back <= last; ++back) {
        __syncthreads();
        const int64 step = last - back, after = row, furthest = end - back;
        row -= (int64)batch_size * num_slots;
        real high = NOTHING;
        for (int64 begin = step; begin <= furthest; begin += LANES) {
            const int64 source = begin + lane;
            real best = NOTHING, total = 0;
            if (source <= furthest)
                for (int64 target = source + 1 + group; target <= furthest + 1; target += GROUPS) {
                    const real way = ahead[after + target] - shift + emissions[after + target];
                    add_up(best, total, links[source * stride_L + target] + way, 1);
                }
            bests[group][lane] = best;
            totals[group][lane] = total;
            __syncthreads();
            if (group == 0 && source <= furthest) {
                for (int other = 1; other < GROUPS; ++other) add_up(best, total, bests[other][lane], totals[other][lane]);
                const real way = finite_or_zero(best) + log(total);
                ahead[row + source] = way;
                high = larger(high, way);
            }
            __syncthreads();
        }
        shift = finite_or_zero(largest_of(highs, high));
    }
}

// What one link carries, summed over steps; a thread for each link of a tile.
extern "C" __global__ void dag_links(
    const real *links, const int64 *last_slot, const int64 *last_step, const real *ways, const real *shifts,
    const real *incoming, real *taken, int64 stride_B, int64 stride_L, int64 batch_size, int64 num_slots
) {
    const int64 sequence = blockIdx.x, end = last_slot[sequence], last = last_step[sequence];
    const int64 source = (int64)blockIdx.y * GROUPS + threadIdx.y, target = (int64)blockIdx.z * LANES + threadIdx.x;
    if (source >= target || target >= num_slots) return;
    const real link = links[sequence * stride_B + source * stride_L + target];
    real carried = 0;
    const int64 first = target - end + last > 1 ? target - end + last : 1, behind = source + 1 < last ? source + 1 : last;
    for (int64 step = first; step <= behind; ++step) {
        const int64 row = (step * batch_size + sequence) * num_slots, before = row - (int64)batch_size * num_slots;
        const real way = ways[before + source] - shifts[(step - 1) * batch_size + sequence];
        carried += exp(way + link + incoming[row + target]);
    }
    taken[(sequence * num_slots + source) * num_slots + target] = carried;
}

// As `dag_forward`, with the best way into each slot, and where it comes from: of equally good sources, the earliest.
extern "C" __global__ void dag_best(
    const real *emissions, const real *links, const int64 *last_slot, const int64 *last_step, real *scores, int *before,
    int64 stride_S, int64 is_whole, int64 stride_B, int64 stride_L, int64 batch_size, int64 num_slots
) {
    __shared__ real bests[GROUPS][LANES];
    __shared__ int places[GROUPS][LANES];
    const int64 sequence = blockIdx.x, end = last_slot[sequence], last = last_step[sequence];
    const int lane = threadIdx.x, group = threadIdx.y;
    if (last < 0) return;
    links += sequence * stride_B;
    int64 row = sequence * num_slots;
    const real *emission = emissions + row;
    if (lane == 0 && group == 0) scores[row] = emission[0];
    for (int64 step = 1; step <= last; ++step) {
        __syncthreads();
        const int64 previous = row, furthest = end - (last - step) * is_whole;
        row += (int64)batch_size * num_slots;
        emission += stride_S;
        for (int64 begin = step; begin <= furthest; begin += LANES) {
            const int64 target = begin + lane;
            real best = NOTHING;
            int place = (int)num_slots;
            if (target <= furthest)
                for (int64 source = step - 1 + group; source < target; source += GROUPS) {
                    const real value = scores[previous + source] + links[source * stride_L + target];
                    if (value > best) best = value, place = (int)source;
                }
            bests[group][lane] = best;
            places[group][lane] = place;
            __syncthreads();
            if (group == 0 && target <= furthest) {
                for (int other = 1; other < GROUPS; ++other) {
                    const real value = bests[other][lane];
                    const int candidate = places[other][lane];
                    if (value > best || (value == best && candidate < place)) best = value, place = candidate;
                }
                scores[row + target] = best + emission[target];
                before[row + target] = place < num_slots ? place : 0;
            }
            __syncthreads();
        }
    }
}

// From the last step to the first, along the best path of one sequence, if it has one; one thread.
extern "C" __global__ void dag_back(
    const int64 *last_slot, const int64 *last_step, const real *scores, const int *before, int64 *path, real *log_prob,
    int64 batch_size, int64 num_slots
) {
    const int64 sequence = blockIdx.x, last = last_step[sequence];
    int64 slot = last_slot[sequence];
    if (last < 0 || threadIdx.x || threadIdx.y) return;
    int64 row = (last * batch_size + sequence) * num_slots;
    log_prob[sequence] = scores[row + slot];
    if (!(scores[row + slot] > NOTHING)) return;
    for (int64 step = last; step >= 0; --step, row -= (int64)batch_size * num_slots) {
        path[sequence * num_slots + slot] = step;
        slot = before[row + slot];
    }
}

// The best path of CTC forwards: how many states back each state of each position comes from, and the last scores.
// `scores` has room for two positions, [2, B, X] of X = 2 * num_tokens + 1 states.
extern "C" __global__ void ctc_best(
    const real *emissions, const unsigned char *may_skip, unsigned char *back, real *scores, int64 num_steps,
    int64 batch_size, int64 num_tokens
) {
    const int64 sequence = blockIdx.x, num_states = 2 * num_tokens + 1;
    const int thread = threadIdx.y * LANES + threadIdx.x;
    const int64 of_position = (int64)batch_size * num_states;
    // Before the first position a path is in the first blank.
    for (int64 state = thread; state < num_states; state += LANES * GROUPS)
        scores[of_position + sequence * num_states + state] = state == 0 ? (real)0 : NOTHING;
    for (int64 step = 0; step < num_steps; ++step) {
        __syncthreads();
        const real *known = scores + (step % 2 == 0) * of_position + sequence * num_states;
        real *next = scores + (step % 2 == 1) * of_position + sequence * num_states;
        const real *emission = emissions + (step * batch_size + sequence) * (num_tokens + 1);
        unsigned char *from = back + (step * batch_size + sequence) * num_states;
        for (int64 state = thread; state < num_states; state += LANES * GROUPS) {
            const bool is_token = state % 2 == 1;
            real best = known[state];
            unsigned char origin = 0;
            if (state > 0 && known[state - 1] > best) best = known[state - 1], origin = 1;
            if (is_token && state > 1 && may_skip[sequence * num_tokens + state / 2] && known[state - 2] > best)
                best = known[state - 2], origin = 2;
            from[state] = origin;
            next[state] = best + emission[is_token ? state / 2 + 1 : 0];
        }
    }
}

// From the last position to the first, along the best path of one sequence; one thread.
extern "C" __global__ void ctc_back(
    const unsigned char *back, const int64 *last_state, int64 *states, int64 num_steps, int64 batch_size,
    int64 num_states
) {
    const int64 sequence = blockIdx.x;
    if (threadIdx.x || threadIdx.y) return;
    int64 state = last_state[sequence];
    for (int64 step = num_steps - 1; step >= 0; --step) {
        states[step * batch_size + sequence] = state;
        state -= back[(step * batch_size + sequence) * num_states + state];
    }
}
