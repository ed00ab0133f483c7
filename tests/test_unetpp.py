"""The network: any size, kernel, depth and width; the fast path against the recursion of the U-Net++ paper written out."""
import math
import tempfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from busi_unetpp.checkpoint import load_weights, save_weights
from busi_unetpp.dataset import BusiError
from busi_unetpp.unetpp import EncoderBlock, NestedNode, SameConv2d, UNetPlusPlus, batch_norm, node_shapes

pytestmark = pytest.mark.usefixtures('one_thread')

TINY = dict(filters=(4, 6, 8), bottleneck=10)
configs = st.fixed_dictionaries(dict(filters=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), bottleneck=st.integers(1, 8),
    kernel_size=st.integers(1, 4), in_channels=st.integers(1, 3), n_heads=st.integers(1, 4), growth=st.sampled_from([1., 1.1, 1.5]), deep_supervision=st.booleans()))
sides = st.integers(8, 40)

def net(seed=0, moved=True, **kw):
    "A network with weights of its own and, if `moved`, running statistics and biases that are not the initial ones."
    torch.manual_seed(seed)
    m = UNetPlusPlus(**{**TINY, **kw})
    if moved:
        for p in (p for n, p in m.named_parameters() if p.ndim == 1): torch.nn.init.uniform_(p, .2, 1)
        for b in (b for b in m.buffers() if b.ndim == 1): torch.nn.init.uniform_(b, .3, 1)
    return m.eval()

def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# against references that are slow and obvious

def slow_same_conv(x, conv):
    "A 'same' convolution in loops over the kernel's places: what lies outside is 0, and of an odd padding the larger half is right and below."
    x, w, b, s = x.detach().double().numpy(), conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy(), conv.stride[0]
    (n, _, h, wd), k = x.shape, w.shape[-1]
    oh, ow = math.ceil(h/s), math.ceil(wd/s)
    top, left = (max((o - 1)*s + k - size, 0)//2 for o, size in ((oh, h), (ow, wd)))
    out = np.zeros((n, len(w), oh, ow)) + b[:, None, None]
    for y in range(oh):
        for c in range(ow):
            for dy in range(k):
                for dx in range(k):
                    yy, xx = y*s + dy - top, c*s + dx - left
                    if 0 <= yy < h and 0 <= xx < wd: out[:, :, y, c] += x[:, :, yy, xx] @ w[:, :, dy, dx].T
    return torch.tensor(out).float()

@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_same_convolution(k, stride, h, w):
    torch.manual_seed(k)
    conv, x = SameConv2d(2, 3, k, stride=stride), rand(2, 2, h, w)
    torch.testing.assert_close(conv(x), slow_same_conv(x, conv), rtol=1e-4, atol=1e-5)

def same(conv, x):
    "The same convolution for the recursion below, by PyTorch's own padding on the whole grid and a choice of every `stride`-th place."
    k, s = conv.kernel_size[0], conv.stride[0]
    pads = [t for n in x.shape[:1:-1] for p in [max((math.ceil(n/s) - 1)*s + k - n, 0)] for t in (p//2, p - p//2)]
    return F.conv2d(F.pad(x, pads), conv.weight, conv.bias)[..., ::s, ::s]

def norm(bn, x):
    v = lambda t: t[:, None, None]
    return (x - v(bn.running_mean))/v((bn.running_var + 1e-3).sqrt())*v(bn.weight) + v(bn.bias)

def node(m, i, j, x):
    "X(i, j) as the U-Net++ paper defines it, each node computed anew from the image."
    if j == 0:
        block = m.encoder.blocks[i]
        y = x if i == 0 else F.elu(same(m.encoder.blocks[i - 1].down[0], node(m, i - 1, 0, x)))
        return norm(block.features[3], F.elu(same(block.features[1][0], F.elu(same(block.features[0][0], y)))))
    n, skips = m.nodes[f'{i}_{j}'], [node(m, i, k, x) for k in range(j)]
    up = F.conv_transpose2d(node(m, i + 1, j - 1, x), n.up.weight, n.up.bias, stride=2)[:, :, :skips[0].shape[2], :skips[0].shape[3]]
    y = torch.cat([*skips, up], 1)
    return norm(n.conv[2], F.elu(same(n.conv[1][0], F.elu(same(n.conv[0][0], y)))))

@settings(max_examples=12)
@given(configs, sides, sides, st.integers(0, 99))
def test_fast_path_equals_the_recursion(config, h, w, seed):
    m, x = net(seed, **config), rand(2, config['in_channels'], h, w, seed=seed)
    level = len(config['filters'])
    used = [int(j) for j in m.heads] if config['deep_supervision'] else [level]
    with torch.no_grad():
        want = torch.stack([F.conv2d(node(m, 0, j, x), m.heads[str(j)].weight, m.heads[str(j)].bias) for j in used]).mean(0)
        torch.testing.assert_close(m(x).logits, want, rtol=1e-3, atol=1e-4*want.abs().max().item() + 1e-5)

@settings(max_examples=25)
@given(configs)
def test_number_of_parameters(config):
    w, k, level = [*config['filters'], config['bottleneck']], config['kernel_size'], len(config['filters'])
    conv = lambda ni, nf, k: ni*nf*k*k + nf
    down = [int(f*config['growth']) for f in w[:-1]]
    want = sum(conv(ni, f, k) + conv(f, f, k) + 2*f for ni, f in zip([config['in_channels'], *down], w)) + sum(conv(f, d, k) for f, d in zip(w, down))
    for i in range(level):
        for j in range(1, level - i + 1): want += conv(w[i + 1], w[i], 2) + conv(w[i]*(j + 1), w[i], k) + conv(w[i], w[i], k) + 2*w[i]
    want += min(config['n_heads'], level)*(w[0] + 1)
    assert sum(p.numel() for p in UNetPlusPlus(**config).parameters()) == want


# sizes, gradients, state

@settings(max_examples=20)
@given(configs, sides, sides, st.integers(1, 3))
def test_output_has_the_size_of_the_input(config, h, w, n):
    m, x = net(**config), rand(n, config['in_channels'], h, w)
    with torch.no_grad(): assert m(x).logits.shape == (n, 1, h, w)
    shapes, level = node_shapes(m, h), len(config['filters'])
    widths = (*config['filters'], config['bottleneck'])
    assert shapes == {(i, j): (widths[i], *[math.ceil(h/2**i)]*2) for i in range(level + 1) for j in range(level + 1 - i)} and not m.training

@settings(max_examples=12)
@given(configs, st.integers(16, 40))
def test_gradients_reach_every_parameter_on_the_way(config, size):
    m = net(**config).train()
    out, x = m(rand(2, config['in_channels'], size, size)), len(config['filters'])
    outs = out.heads or (out.logits,)
    assert len(outs) == (min(config['n_heads'], x) if config['deep_supervision'] else 1)
    sum((o*rand(*o.shape, seed=1)).sum() for o in outs).backward()
    idle = set() if config['deep_supervision'] else {f'heads.{j}.{w}' for j in m.heads if j != str(x) for w in ('weight', 'bias')}
    for name, p in m.named_parameters():
        if name in idle: assert p.grad is None, name
        else: assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name

@settings(max_examples=10)
@given(configs, st.integers(0, 99))
def test_state_goes_through_a_file(config, seed):
    m, other, x = net(seed, **config), net(seed + 1, **config), rand(1, config['in_channels'], 24, 24)
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        stored = load_weights(save_weights(f'{tmp}/m.safetensors', m, config))
        assert not torch.equal(other(x).logits, m(x).logits) and not stored.training
        other.load_state_dict(m.state_dict())
        for n in (other, stored):
            torch.testing.assert_close(n(x).logits, m(x).logits, rtol=0, atol=0)
            assert all(torch.equal(a, b) for a, b in zip(n.state_dict().values(), m.state_dict().values()))

def test_weights_of_another_network_are_refused(tmp_path):
    path = save_weights(tmp_path/'m.safetensors', net(), dict(TINY, bottleneck=11))
    with pytest.raises(BusiError, match='m.safetensors: not the weights'): load_weights(path)

def test_the_seed_decides_the_weights():
    a, b, c = (net(seed, moved=False).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a['heads.3.weight'], c['heads.3.weight'])

def test_initial_weights_are_glorot():
    m = UNetPlusPlus(filters=(32, 48), bottleneck=64)
    for name, p in m.named_parameters():
        p = p.detach()
        if p.ndim == 4:
            limit = math.sqrt(6/((p.shape[0] + p.shape[1])*p.shape[2]*p.shape[3]))
            assert p.abs().max() <= limit and (p.numel() < 500 or p.std().item() == pytest.approx(limit/math.sqrt(3), rel=.1)), name
        elif name.endswith('bias'): assert not p.any(), name

def test_an_encoder_block_is_the_papers():
    block = EncoderBlock(3, 10, dropout=.5).train()
    kinds = [type(m).__name__ for m in block.modules() if not list(m.children())]
    assert kinds == ['SameConv2d', 'ELU', 'SameConv2d', 'ELU', 'Dropout2d', 'BatchNorm2d', 'SameConv2d', 'ELU']
    assert block.n_down == 11 and block.down[0].stride == (2, 2) and block.features[0][0].kernel_size == (2, 2)
    torch.manual_seed(0)
    maps = block.features[2](torch.ones(40, 10, 4, 4)).flatten(2)
    assert ((maps == 0).all(2) | (maps == 2).all(2)).all() and .4 < (maps == 0).float().mean() < .6  # whole maps, half of them
    assert [type(m).__name__ for m in NestedNode(4, 4, 4).conv.modules() if not list(m.children())] == ['SameConv2d', 'ELU']*2 + ['BatchNorm2d']
    assert (batch_norm(3).eps, batch_norm(3).momentum) == (1e-3, .01)

def test_dropout_acts_in_training_only():
    m, x = net(dropout=.5), rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(m(x).logits, m(x).logits)
        for b in m.modules():
            if isinstance(b, torch.nn.Dropout2d): b.train()
        assert not torch.equal(m(x).logits, m(x).logits)

def test_images_of_a_batch_do_not_touch():
    m, x = net(), rand(3, 1, 33, 20)
    with torch.no_grad(): torch.testing.assert_close(torch.cat([m(o[None]).logits for o in x]), m(x).logits, rtol=1e-4, atol=1e-4)

def test_depth_is_a_prefix_of_the_filters():
    a, b = net(3, filters=(4, 6, 8), depth=2), net(3, filters=(4, 6), bottleneck=8)
    assert a.state_dict().keys() == b.state_dict().keys()
    with torch.no_grad(): torch.testing.assert_close(a(rand(1, 1, 20, 20)).logits, b(rand(1, 1, 20, 20)).logits)
    for depth in (0, 4, -1):
        with pytest.raises(BusiError, match='expected 1 to 3'): net(depth=depth)

@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(16, 33))
def test_pruned_network_is_its_head(level, n_heads, size):
    m, x = net(n_heads=n_heads, deep_supervision=True), rand(2, 1, size, size)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    if level < 4 - n_heads:
        with pytest.raises(BusiError, match=f'prune to level {level}'): m.prune(level)
        return
    small = m.prune(level)
    with torch.no_grad(): torch.testing.assert_close(small(x).logits, m.heads[str(level)](m.columns(m.encoder(x, m.level + 1))[level]), rtol=1e-5, atol=1e-5)
    assert len(small.nodes) == level*(level + 1)//2 and list(small.heads) == [str(level)] and len(small.encoder.blocks) == level + 1
    with torch.no_grad():
        for p in small.parameters(): p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()) and m.level == 3  # a copy: the original is untouched


# other arithmetic, other runtimes

@settings(max_examples=6)
@given(st.integers(0, 99), st.booleans())
def test_bfloat16_is_close_to_float32(seed, deep):
    m, x = net(seed, moved=False, deep_supervision=deep), rand(2, 1, 48, 48, seed=seed)
    m.train()(x)
    m.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): half = m(x).logits
    with torch.no_grad(): full = m(x).logits
    assert half.dtype == torch.bfloat16 and (half.float() - full).abs().max() < .1*full.abs().max()

def test_channels_last_changes_nothing():
    m, x = net(), rand(2, 1, 40, 33)
    with torch.no_grad():
        want = m(x).logits
        got = m.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

def test_exported_network_gives_the_same():
    m, x = net(), rand(1, 1, 50, 48)
    class Mask(torch.nn.Module):
        def __init__(self): super().__init__(); self.net = m
        def forward(self, x): return self.net(x).logits
    exported = torch.export.export(Mask().eval(), (x,)).module()
    with torch.no_grad(): torch.testing.assert_close(exported(x*.5), m(x*.5).logits, rtol=1e-4, atol=1e-4)


# the presence head

@pytest.mark.parametrize('supervised', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_presence_head_answers_for_the_image_and_leaves_the_mask_alone(supervised, training):
    m, x = net(seed=3, presence=True, deep_supervision=supervised, dropout=0.), rand(4, 1, 24, 32)
    for o in m.modules():
        if isinstance(o, torch.nn.BatchNorm2d): o.track_running_stats = False
    with torch.no_grad():
        m.presence.weight.mul_(3)
        m.train(training)
        deepest = m.encoder(x, m.level + 1)[-1]
        there = torch.stack([torch.cat([o.flatten(1).mean(1), o.flatten(1).max(1).values]) @ m.presence.weight[0] + m.presence.bias[0] for o in deepest])
        out = m(x)
        m.presence = None
        bare = m(x)
    torch.testing.assert_close(out.presence[:, 0], there)
    assert there.std() > .01 and bare.presence is None
    assert torch.equal(out.logits, bare.logits) and len(out.heads) == len(bare.heads) == (3 if supervised else 0)
    assert all(torch.equal(a, b) for a, b in zip(out.heads, bare.heads))
