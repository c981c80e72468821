# SPDX-License-Identifier: Apache-2.0
"""Trains the byte-level long-context Llama by stages of wall time, and writes it in Hugging Face form.

    python3 train.py --text text.xz --out FOLDER                       the recipe: about 10 minutes on one H100
    python3 train.py --text text.xz --out FOLDER --minutes 20          the same stages, stretched
    python3 train.py --device cpu --smoke --out FOLDER                 a test of every part, about a minute on a CPU

A checkpoint beside the model (FOLDER/checkpoint.pt) is written after each stage and every --save-every seconds; a run that finds
one goes on from it. A stage is LENGTHxROWS:SECONDS; LENGTHxROWS+LENGTHxROWS:SECONDS takes turns. A stage's time starts when
its first steps are through, so that compilation does not count.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import time

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import evaluate
from model import llama, load_model, model_config, save_model, smoke_config

recipe = "512x128:40,2048x32:30,8192x16:40,32768x4:100,131072x1+131072x1+32768x4:170"
smoke_recipe = "128x16:25,256x8:15,512x2+128x8:8"
shortest_with_gaps = 2048  # shorter rows keep plain positions: they only have to teach looking up
copy_weight, answer_weight = 0.5, 1.0
last_rate_share, constant_share = 0.03, 0.5


@dataclasses.dataclass
class stage:
    shapes: list[tuple[int, int]]  # (length, rows), in turn
    seconds: float

    @property
    def longest(self) -> int:
        return max(length for length, _ in self.shapes)


def parse_stages(text: str) -> list[stage]:
    stages: list[stage] = []
    for item in text.split(","):
        shapes, seconds = item.split(":")
        pairs = [shape.split("x") for shape in shapes.split("+")]
        stages.append(stage([(int(length), int(rows)) for length, rows in pairs], float(seconds)))
    return stages


@dataclasses.dataclass
class progress:
    """What a checkpoint keeps besides weights and optimizer state."""

    stage: int = 0
    stage_seconds: float = 0.0
    done_seconds: float = 0.0  # of all finished stages
    step: int = 0
    tokens: int = 0


def rate_at(share: float, step: int, peak: float, warm_up: int) -> float:
    """Warm-up by steps, then constant for half of the time, then linear to 3 %."""
    falling = max(0.0, (share - constant_share) / (1 - constant_share))
    return peak * min(1.0, (step + 1) / warm_up) * (1 - (1 - last_rate_share) * min(1.0, falling))


def losses(model: llama, hidden: Tensor, target: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss, and sums [5] for the report: loss and count of text, loss, count and hits of answers."""
    logits = model.logits(hidden).float()
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    code = codes.flatten()
    weight = weights[code]
    with torch.no_grad():
        text, answer = (code == data.text_code).float(), (code == data.answer_code).float()
        hit = (logits.argmax(-1).flatten() == target.flatten()).float()
        sums = torch.stack(((each * text).sum(), text.sum(), (each * answer).sum(), answer.sum(), (hit * answer).sum()))
    return (each * weight).sum() / weight.sum(), sums


class trainer:
    def __init__(self, args: argparse.Namespace, stages: list[stage], part: data.text_part, held_out: data.text_part) -> None:
        self.args, self.stages, self.part, self.held_out = args, stages, part, held_out
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        torch.manual_seed(args.seed)
        config = smoke_config if args.smoke else model_config()
        self.model = load_model(args.init, self.device) if args.init else llama(config).to(self.device)
        matrices = [weight for name, weight in self.model.named_parameters() if weight.ndim == 2]
        vectors = [weight for weight in self.model.parameters() if weight.ndim != 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                           lr=args.rate, betas=(0.9, 0.95), fused=self.cuda)
        self.at = progress()
        self.weights = torch.tensor([args.text_weight, copy_weight, answer_weight], device=self.device)
        self.losses = losses
        if self.cuda:
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.layers:
                layer.compile(dynamic=False)  # one block is compiled for each shape, not eight
            self.losses = torch.compile(losses, dynamic=False)

    @property
    def checkpoint(self) -> pathlib.Path:
        return self.args.out / "checkpoint.pt"

    def save(self, trained_length: int) -> None:
        self.args.out.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "progress": dataclasses.asdict(self.at)}, part)
        os.replace(part, self.checkpoint)
        save_model(self.model, self.args.out, trained_length)

    def resume(self) -> None:
        if self.checkpoint.exists():
            kept = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.at = progress(**kept["progress"])
            print(f"goes on at step {self.at.step}, stage {self.at.stage + 1} of {len(self.stages)}", flush=True)

    def rate(self, share: float) -> float:
        return rate_at(share, self.at.step, self.args.rate, self.args.warm_up)

    def step(self, batch: tuple[Tensor, Tensor, Tensor], share: float) -> Tensor:
        rows, codes, positions = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        rows, codes = rows.long(), codes.long()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(share)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            hidden = self.model(rows[:, :-1], positions)
            loss, sums = self.losses(self.model, hidden, rows[:, 1:], codes[:, 1:], self.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.at.step += 1
        self.at.tokens += positions.numel()
        return sums

    def run_stage(self, current: stage, total: float) -> None:
        """Trains until the stage's time is over; two steps are in flight at most, so that the clock tells the truth."""
        args, at = self.args, self.at
        gap_share = args.gap_share if current.longest >= shortest_with_gaps else 0.0
        feed = data.batches(self.part, current.shapes, args.seed * 100_003 + at.step, args.reach, gap_share,
                            args.pool_share)
        loader = iter(torch.utils.data.DataLoader(feed, batch_size=None, num_workers=args.loaders, pin_memory=self.cuda,
                                                  prefetch_factor=4 if args.loaders else None))
        warm = 2 * len(current.shapes)  # steps before the clock starts: compilation, first memory
        begin, offset, spent = time.time(), at.stage_seconds, 0.0
        said = saved = begin
        sums, tokens_said = torch.zeros(5, device=self.device), at.tokens
        pending: list[torch.cuda.Event] = []
        for count, batch in enumerate(loader):
            if count == warm:
                if self.cuda:
                    torch.cuda.synchronize()
                print(f"  length {current.longest}: ready after {time.time() - begin:.1f} s", flush=True)
                begin = said = saved = time.time()
                tokens_said = at.tokens
            spent = offset + (time.time() - begin if count >= warm else 0.0)
            if spent >= current.seconds:
                break
            sums += self.step(batch, (at.done_seconds + spent) / total)
            if self.cuda:
                pending.append(torch.cuda.Event())
                pending[-1].record()
                if len(pending) > 2:
                    pending.pop(0).synchronize()
            at.stage_seconds = spent
            now = time.time()
            if count > warm and now - said >= args.report_every:
                self.report(current, sums, (at.tokens - tokens_said) / (now - said), (at.done_seconds + spent) / total)
                sums, said, tokens_said = torch.zeros_like(sums), now, at.tokens
            if now - saved >= args.save_every:
                self.save(current.longest)
                saved = now
        del loader
        at.done_seconds += current.seconds
        at.stage_seconds = 0.0
        at.stage += 1

    def report(self, current: stage, sums: Tensor, speed: float, share: float) -> None:
        text, texts, answer, answers, hits = sums.tolist()
        if text != text:
            raise SystemExit("train.py: the loss is not a number; start again with a smaller --rate")
        print(f"{100 * share:5.1f} %  length {current.longest:6}  step {self.at.step:6}  {self.at.tokens / 1e6:7.1f} M tokens  "
              f"{speed / 1e6:6.3f} M/s  rate {self.rate(share):.1e}  text {text / max(1, texts):.3f}  "
              f"answers {answer / max(1, answers):.4f}  bytes right {100 * hits / max(1, answers):6.2f} %", flush=True)

    def try_out(self, lengths: list[int], count: int) -> None:
        self.model.eval()
        begin = time.time()
        with torch.compiler.set_stance("force_eager"):  # these shapes come once
            exact = evaluate.measure(self.model, self.held_out, lengths, list(data.prompts), count, 99, self.device)
        print(f"  exact of {count}: {exact}  ({time.time() - begin:.1f} s)", flush=True)
        self.model.train()

    def run(self) -> None:
        self.resume()
        total = sum(each.seconds for each in self.stages)
        begin = time.time()
        while self.at.stage < len(self.stages):
            current = self.stages[self.at.stage]
            self.run_stage(current, total)
            self.save(current.longest)
            if self.args.keep_stages:
                save_model(self.model, self.args.out / f"length-{current.longest}", current.longest)
            if self.args.try_count:
                self.try_out([max(evaluate.shortest_length, current.longest)], self.args.try_count)
        print(f"done: {self.at.step} steps, {self.at.tokens / 1e6:.1f} M tokens, {time.time() - begin:.0f} s", flush=True)


def smoke_text() -> str:
    """This folder's own files: enough text for the test."""
    folder = pathlib.Path(__file__).parent
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.py")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the example's model.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, help="the text that corpus.py made (text.xz)")
    parser.add_argument("--stages", default=None, help=f"default {recipe}")
    parser.add_argument("--minutes", type=float, help="stretches the stages to this training time in all")
    parser.add_argument("--init", type=pathlib.Path, help="start from the weights of this model folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and short stages")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--warm-up", type=int, default=200, help="steps until the highest learning rate is reached")
    parser.add_argument("--text-weight", type=float, default=0.2, help="loss weight of text; copies have 0.5, answers 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reach", type=int, default=131072, help="the farthest position of rows with gaps")
    parser.add_argument("--gap-share", type=float, default=0.5, help="share of rows whose positions have gaps")
    parser.add_argument("--pool-share", type=float, default=0.0, help="share of rows whose keys share words with each other")
    parser.add_argument("--loaders", type=int, default=max(0, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--report-every", type=float, default=10.0)
    parser.add_argument("--save-every", type=float, default=60.0)
    parser.add_argument("--try-count", type=int, default=25, help="test prompts of each task after each stage, 0 for none")
    parser.add_argument("--keep-stages", action="store_true", help="also keep each stage's model in its own folder")
    args = parser.parse_args()
    if args.smoke:
        args.reach, args.report_every, args.try_count = 2048, min(args.report_every, 5.0), min(args.try_count, 4)
    elif not args.text:
        parser.error("--text is needed (or --smoke)")
    stages = parse_stages(args.stages or (smoke_recipe if args.smoke else recipe))
    if args.minutes:
        stretch = args.minutes * 60 / sum(each.seconds for each in stages)
        for each in stages:
            each.seconds *= stretch
    part, held_out = data.load_parts(args.text) if args.text else data.split_parts(smoke_text())
    print(f"{(len(part.text) + len(held_out.text)) / 1e6:.1f} MB of text, {args.loaders} loaders, stages "
          + ", ".join(f"{each.shapes} {each.seconds:.0f} s" for each in stages), flush=True)
    trainer(args, stages, part, held_out).run()


if __name__ == "__main__":
    main()
