// SPDX-License-Identifier: Apache-2.0
// Holds a checkpoint's tensors against its configuration before any of them is read: what the model needs is there, and what is there
// and would change the result is used. The rest is refused by name, because leaving it out would compute another model.
#pragma once
#include "weight_source.hpp"

namespace minillama {

/// Completes a checkpoint from the names of its tensors.
///
/// prefix, head      names may begin with "model.", with nothing, or with "language_model." in any of its places
/// tied embeddings   a head in the file that differs from the embedding is the head, whatever the flag says, as transformers has it;
///                   without a head, and without a flag, the embedding is the head
/// biases            of attention and MLP: used where the file has them, unless the configuration says that there are none
///
/// @throws load_error that names file and tensor: missing, of another shape or type, left over. Rotary frequencies (inv_freq), scales of
///         a quantized KV cache (k_scale, v_scale) and position_ids may be left over: nobody computes with them.
void match_tensors(checkpoint& opened);

}  // namespace minillama
