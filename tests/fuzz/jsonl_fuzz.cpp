// SPDX-License-Identifier: Apache-2.0
// Files of JSON lines: every line is read to the end, with the keys of a question set.
#include "jsonl_reader.hpp"

#include "fuzz_input.hpp"

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  static pqkv_fuzz::input_file file;
  file.set(data, size);
  pqkv_fuzz::read_untrusted([&] {
    minillama::jsonl_reader lines(file.path());
    std::size_t before = 0;
    while (lines.next()) {
      if (lines.line() <= before || lines.line() > size) std::abort();
      before = lines.line();
      const minillama::json_reader record = lines.record();
      record.text("input");
      if (record.states("length")) record.whole("length", 0, 1u << 30);
      if (record.texts(record.states("outputs") ? "outputs" : "answers").empty()) std::abort();
    }
  });
  return 0;
}
