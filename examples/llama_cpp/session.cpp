// SPDX-License-Identifier: Apache-2.0
// A sequence in a file: its tokens, llama.cpp's cache of sliding windows, and each layer as pqkv writes it. Without pqkv the file is
// llama.cpp's own.
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <pqkv/core/checksum.hpp>

#include "engine.hpp"

namespace llama_example {
namespace {
struct session_header {
  char magic[8] = {'p', 'q', 'k', 'v', 's', 'e', 's', '2'};
  std::uint64_t tokens = 0, window_bytes = 0, layers = 0, policy = 0, model_parameters = 0, model_bytes = 0;
  std::uint32_t checksum = 0, reserved = 0;  // of tokens and windows; each layer has its own
};

struct close_file {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using file_handle = std::unique_ptr<std::FILE, close_file>;

void put(std::FILE* file, const void* data, std::size_t bytes) {
  if (std::fwrite(data, 1, bytes, file) != bytes) throw std::runtime_error("the session file cannot be written: is the disk full?");
}
void get(std::FILE* file, void* data, std::size_t bytes) {
  if (std::fread(data, 1, bytes, file) != bytes) throw std::runtime_error("the session file ends early");
}

std::uint32_t checksum_of(std::span<const llama_token> tokens, std::span<const std::uint8_t> windows) {
  pqkv::crc32 sum;
  sum.add(tokens.data(), tokens.size_bytes());
  sum.add(windows.data(), windows.size());
  return sum.value();
}

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw std::runtime_error("the session file " + path + " " + what);
}
}  // namespace

void engine::save(const std::string& path, std::span<const llama_token> tokens, std::size_t sequence) {
  if (tokens.size() != size_[sequence]) throw std::invalid_argument("save() takes the tokens that the sequence has");
  const std::string part = path + ".part";
  try {
    if (!hook_) {
      if (llama_state_seq_save_file(context_.get(), part.c_str(), static_cast<llama_seq_id>(sequence), tokens.data(), tokens.size()) == 0)
        throw std::runtime_error("llama.cpp cannot write the session file " + part);
    } else {
      file_handle file(std::fopen(part.c_str(), "wb"));
      if (!file) refuse(part, "cannot be written");
      const mark_type here = mark(sequence);
      session_header header;
      header.tokens = tokens.size(), header.window_bytes = here.windows.size(), header.layers = hook_->layers();
      header.policy = static_cast<std::uint64_t>(policy_);
      header.model_parameters = llama_model_n_params(model_.get()), header.model_bytes = llama_model_size(model_.get());
      header.checksum = checksum_of(tokens, here.windows);
      put(file.get(), &header, sizeof header);
      put(file.get(), tokens.data(), tokens.size_bytes());
      put(file.get(), here.windows.data(), here.windows.size());
      hook_->save(sequence, file.get());
      if (std::fclose(file.release()) != 0) throw std::runtime_error("the session file cannot be written: is the disk full?");
    }
    std::filesystem::rename(part, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw;
  }
}

std::vector<llama_token> engine::load(const std::string& path, std::size_t sequence) {
  if (size_[sequence] != 0) throw std::invalid_argument("load() takes an empty sequence");
  std::vector<llama_token> tokens(capacity_);
  if (!hook_) {
    std::size_t count = 0;
    if (llama_state_seq_load_file(context_.get(), path.c_str(), static_cast<llama_seq_id>(sequence), tokens.data(), tokens.size(),
                                  &count) == 0) {
      // A part may have been read.
      llama_memory_seq_rm(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence), -1, -1);
      refuse(path, "is not one that llama.cpp reads, for this model and context");
    }
    tokens.resize(count);
    size_[sequence] = count;
    return tokens;
  }
  if (hook_->layers() == 0) {  // they are known once a graph was computed
    const llama_token any = 0;
    if (!read(std::span(&any, 1), sequence)) throw std::runtime_error("stopped while a session was loaded");
    truncate(0, sequence);
    logits_row_[sequence] = -1;  // of no token that counts
  }
  file_handle file(std::fopen(path.c_str(), "rb"));
  if (!file) refuse(path, "cannot be read");
  session_header header;
  const session_header expected;
  get(file.get(), &header, sizeof header);
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) refuse(path, "was not written by this program");
  if (header.policy != static_cast<std::uint64_t>(policy_)) refuse(path, "was written with another --policy");
  if (header.layers != hook_->layers() || header.model_parameters != llama_model_n_params(model_.get()) ||
      header.model_bytes != llama_model_size(model_.get()))
    refuse(path, "is of another model");
  if (header.tokens > capacity_)
    refuse(path, "has " + std::to_string(header.tokens) + " tokens, and the context is " + std::to_string(capacity_));
  if ((header.window_bytes != 0) != (window_ != 0) || header.window_bytes > std::filesystem::file_size(path))
    refuse(path, "is of a model with other sliding windows");
  tokens.resize(header.tokens);
  get(file.get(), tokens.data(), tokens.size() * sizeof(llama_token));
  mark_type windows{.n = header.tokens, .windows = std::vector<std::uint8_t>(header.window_bytes)};
  get(file.get(), windows.windows.data(), windows.windows.size());
  if (checksum_of(tokens, windows.windows) != header.checksum) refuse(path, "is damaged: its checksum is another");
  try {
    hook_->load(sequence, file.get(), tokens.size());
    put_windows(windows, sequence);
  } catch (...) {
    hook_->reset(sequence);
    llama_memory_seq_rm(llama_get_memory(context_.get()), static_cast<llama_seq_id>(sequence), -1, -1);
    throw;
  }
  size_[sequence] = tokens.size();
  released_[sequence] = 1;
  return tokens;
}

}  // namespace llama_example
