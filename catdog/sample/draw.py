"""Drawings of cats, dogs and other things, for use without internet"""

import colorsys, json, re
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path
from random import Random
import numpy as np
from PIL import Image, ImageDraw

def _mix(a, b, share): return tuple(round(x + (y-x)*share) for x,y in zip(a, b))
def _darker(c, share=.3): return _mix(c, (20, 14, 24), share)      # pure black and white would look like plastic
def _lighter(c, share=.3): return _mix(c, (255, 252, 244), share)
def _hsv(h, s, v): return tuple(round(o*255) for o in colorsys.hsv_to_rgb(h%1, s, v))

def _smooth(points, closed=True):
    "Catmull-Rom curve through `points`, as an array of shape (m,2)"
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    a,b,c,d = p[:-3],p[1:-2],p[2:-1],p[3:]
    t = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    q = b + t/2*(c-a + t*(2*a-5*b+4*c-d + t*(3*b-a-3*c+d)))
    q = q.transpose(1, 0, 2).reshape(-1, 2)
    return q if closed else np.concatenate([q, p[-2:-1]])

_CIRCLE = np.stack([f(np.linspace(0, 2*np.pi, 40, endpoint=False)) for f in (np.cos, np.sin)], 1)
class _Pen:
    "Draws on `img` in a frame with its origin at a pixel, `scale` pixels per unit, turned by `tilt` radians"
    def __init__(self, img, at, scale, tilt=0., mirror=False):
        self.img,self.draw,self.at = img,ImageDraw.Draw(img),np.array(at, float)
        self.scale,self.tilt,self.mirror = scale,tilt,mirror
        c,s = np.cos(tilt)*scale,np.sin(tilt)*scale
        self.matrix = np.array([[-c, -s] if mirror else [c, s], [-s, c]])
    def inner(self, x, y, scale=1., tilt=0.):
        tilt = self.tilt + (-tilt if self.mirror else tilt)
        return _Pen(self.img, self.pixels([(x, y)]), self.scale*scale, tilt, self.mirror)
    def pixels(self, points): return (np.asarray(points, float)@self.matrix + self.at).ravel().tolist()
    def polygon(self, points, fill): self.draw.polygon(self.pixels(points), fill)
    def rect(self, x0, y0, x1, y1, fill): self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)
    def blob(self, points, fill): self.polygon(_smooth(points), fill)
    def even(self, half, fill): self.blob(half + [(-x, y) for x,y in half[::-1] if x], fill)   # mirrored at x = 0
    def ellipse(self, x, y, rx, ry, fill, tilt=0.):
        c,s = np.cos(tilt),np.sin(tilt)
        self.polygon(_CIRCLE*(rx, ry)@np.array([[c, s], [-s, c]]) + (x, y), fill)
    def line(self, points, fill, width):
        p,w = self.pixels(_smooth(points, False)),max(2, round(width*self.scale))
        self.draw.line(p, fill, w, joint='curve')
        for x,y in (p[:2], p[-2:]): self.draw.ellipse((x-w/2, y-w/2, x+w/2, y+w/2), fill)
    def taper(self, points, fill, start, end):
        q = _smooth(points, False)
        d = np.gradient(q, axis=0)
        side = np.stack([-d[:, 1], d[:, 0]], 1)/np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-6)
        side *= np.linspace(start, end, len(q))[:, None]/2
        self.polygon(np.concatenate([q+side, (q-side)[::-1]]), fill)
        for (x,y),r in ((q[0], start/2), (q[-1], end/2)): self.ellipse(x, y, r, r, fill)
    def shadow(self, x, y, rx):
        "A shadow on the ground, in a darker shade of what is there"
        at = np.clip(np.array(self.pixels([(x, y)]), int), 0, np.array(self.img.size) - 1)
        self.ellipse(x, y, rx, rx*.1, _darker(self.img.getpixel(tuple(at.tolist()))))

def _gradient(size, top, bottom):
    a = np.linspace(0, 1, size[1])[:, None]*(np.array(bottom, float)-top) + top
    return Image.fromarray(a.astype('uint8')[:, None]).resize(size, Image.Resampling.NEAREST)

def _ground(img, y, top, bottom):
    img.paste(_gradient((img.width, max(1, round(img.height-y))), top, bottom), (0, round(y)))

def _outdoors(size, r):
    w,h = size
    horizon = h*r.uniform(.35, .7)
    sky = r.choice([(126, 178, 226), (168, 204, 232), (242, 186, 140), (150, 160, 178), (88, 132, 196)])
    grass = r.choice([(110, 160, 76), (140, 168, 84), (88, 132, 70), (196, 178, 122), (224, 228, 234)])
    img = _gradient(size, sky, _lighter(sky, .6))
    p = _Pen(img, (0, 0), 1)
    if r.random() < .4: p.ellipse(w*r.random(), horizon*r.uniform(.1, .5), h*.07, h*.07, _lighter(sky, .8))   # sun
    for _ in range(r.randint(0, 3)):   # clouds
        x,y,s = w*r.random(),horizon*r.uniform(.1, .6),h*r.uniform(.04, .1)
        for k in range(4): p.ellipse(x + s*(k-1.5)*.9, y - s*.4*(k in (1, 2)), s*.9, s*.6, _lighter(sky, .75))
    for k in range(r.randint(0, 2)):   # hills
        p.ellipse(w*r.uniform(-.2, 1.2), horizon + h*.1, w*r.uniform(.3, .7), h*r.uniform(.15, .35),
                  _mix(grass, sky, .6-.2*k))
    _ground(img, horizon, _lighter(grass, .2), _darker(grass, .25))
    p = _Pen(img, (0, 0), h/100)
    for _ in range(r.randint(0, 40)):
        x,y = r.uniform(0, 100*w/h),r.uniform(horizon/h*100+3, 100)
        p.polygon([(x-.8, y), (x+r.uniform(-1, 1), y-r.uniform(2, 5)), (x+.8, y)], _darker(grass, r.uniform(0, .35)))
    return img

def _room(size, r):
    w,h = size
    floor,wall = h*r.uniform(.55, .85),_hsv(r.random(), r.uniform(.05, .4), r.uniform(.6, .95))
    wood = r.choice([(176, 128, 84), (138, 96, 66), (196, 164, 126), (150, 146, 144), (112, 104, 120)])
    img,wide = _gradient(size, wall, _darker(wall, .15)),100*w/h
    p = _Pen(img, (0, 0), h/100)
    if r.random() < .4:
        step = r.uniform(6, 16)
        for x in np.arange(0, wide, step): p.rect(x, 0, x+step/2, 100, _darker(wall, .06))
    for _ in range(r.randint(0, 2)):   # pictures and windows
        x,y,a,b = r.uniform(0, wide),r.uniform(5, 40),r.uniform(8, 20),r.uniform(8, 18)
        frame = r.choice([_darker(wood, .4), (240, 236, 228)])
        p.rect(x-a, y-b, x+a, y+b, frame)
        p.rect(x-a+2, y-b+2, x+a-2, y+b-2, _hsv(r.random(), r.uniform(.1, .5), r.uniform(.5, .95)))
        if r.random() < .5: p.line([(x, y-b+1), (x, y+b-1)], frame, 1.5)
    _ground(img, floor, wood, _darker(wood, .3))
    p.rect(0, floor/h*100-3, wide, floor/h*100, _lighter(wall, .5))
    if r.random() < .6:   # a rug
        p.ellipse(wide*r.uniform(.2, .8), 96, wide*r.uniform(.3, .6), r.uniform(8, 16),
                  _hsv(r.random(), r.uniform(.2, .6), r.uniform(.4, .9)))
    return img

def _plain(size, r):
    c = _hsv(r.random(), r.uniform(0, .5), r.uniform(.35, 1))
    return _gradient(size, c, _darker(c, r.uniform(0, .4)))

def _pattern(size, r):
    w,h = size
    c = _hsv(r.random(), r.uniform(.1, .5), r.uniform(.45, .95))
    other = r.choice([_lighter(c, .35), _darker(c, .2), _hsv(r.random(), r.uniform(.1, .5), r.uniform(.5, .95))])
    img,kind,n = Image.new('RGB', size, c),r.choice(['dots', 'stripes', 'checks']),r.randint(5, 12)
    p = _Pen(img, (w/2, h/2), max(w, h)/n, r.uniform(-.8, .8))
    for i in range(-n, n):
        if kind == 'stripes': p.rect(-n, i, n, i+.5, other)
        for j in range(-n, n):
            if kind == 'checks' and (i+j)%2: p.rect(i, j, i+1, j+1, other)
            if kind == 'dots': p.ellipse(i + j%2/2, j, .28, .28, other)
    return img

def _blurred(size, r):
    small = r.choice([_outdoors, _room])((48, 48), r)
    return small.resize((6, 6), Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)

def _stage(img, r, box, tilt):
    "A pen for a subject that fills `box` (left, top, right, bottom), placed by `r`; `tilt`: a standard deviation"
    w,h = img.size
    x0,y0,x1,y1 = box
    scale = min(w/(x1-x0), h/(y1-y0))*r.uniform(.72, 1.04)
    mirror = r.random() < .5
    room = np.array([max(0, w-scale*(x1-x0)), max(0, h-scale*(y1-y0))])
    at = np.array([w, h])/2 + room*(r.uniform(-.4, .4), r.uniform(-.1, .47))
    return _Pen(img, at, scale, r.gauss(0, tilt), mirror).inner(-(x0+x1)/2, -(y0+y1)/2)

_COATS = dict(
    ginger=(222, 146, 78), grey=(136, 138, 148), black=(58, 54, 60), white=(240, 234, 224), brown=(132, 90, 62),
    cream=(230, 204, 164), blue=(108, 120, 138), chocolate=(92, 64, 50), golden=(208, 162, 94), tabby=(156, 130, 104),
    red=(176, 98, 58), fawn=(202, 172, 138))
class _Coat:
    def __init__(self, r, words):
        named = [o for o in words if o in _COATS]
        main = _COATS[named[0] if named else r.choice(list(_COATS))]
        self.main = main = _mix(main, _hsv(r.random(), .5, .7), r.uniform(0, .12))
        self.pattern = r.choice(['plain', 'stripes', 'patches', 'bib', 'stripes', 'patches'])
        other = r.choice([o for o in _COATS.values() if abs(sum(o)-sum(main)) > 120])
        self.light = sum(main) > 240
        stripe = _darker(main, .42) if self.light else _lighter(main, .18)
        self.mark = dict(stripes=stripe, patches=other).get(self.pattern, _darker(main, .2))
        self.belly = _lighter(main, .75) if self.pattern == 'bib' else _lighter(main, r.uniform(.15, .5))
        self.line = _darker(main, .45) if self.light else _lighter(main, .3)
        self.ears = main,self.mark if self.pattern == 'patches' else main   # of a cat
        self.paw = self.belly if self.pattern == 'bib' else _lighter(main, .12)
    def marks(self, p, patch, stripes=(), width=.2, end=.04):
        "Draw the pattern: a `patch`, or a taper along each of `stripes`"
        if self.pattern == 'patches' and patch: p.blob(patch, self.mark)
        if self.pattern == 'stripes':
            for o in stripes: p.taper(o, self.mark, width, end)

def _sit(p, coat, thick):
    main,line,t = coat.main,coat.line,thick
    for x in (-1, 1): p.ellipse(x*.85, 2.75, .62*t, .75, _darker(main, .12))
    p.even([(.55, .4), (.85, 1.5), (1.05*t, 2.7), (.7, 3.4)], main)
    coat.marks(p, [(.1, 1.1), (.75, 1.2), (.95, 2.1), (.5, 2.5), (.2, 1.9)],
        [[(s*.98*t, y), (s*.6, y+.14), (s*.42, y+.1)] for y in (1.5, 1.95, 2.4, 2.85) for s in (-1, 1)])
    p.even([(.4, .8), (.5, 1.7), (.25, 2.5)], coat.belly)
    for x in (-.42, .42):
        p.taper([(x*.9, 1.7), (x, 3.1)], main, .5*t, .42*t)
        p.line([(x-np.sign(x)*.24, 2.0), (x-np.sign(x)*.22, 3.0)], line, .035)
        p.ellipse(x, 3.28, .36*t, .24, coat.paw)
        for k in (-.1, .1): p.line([(x+k, 3.26), (x+k, 3.44)], line, .035)

def _stand(p, coat, t):
    main = coat.main
    for x in (1.25, 2.6):
        p.taper([(x, 1.5), (x+.08, 3.0)], _darker(main, .25), .55*t, .36*t)
        p.ellipse(x, 3.1, .32*t, .18, _darker(main, .3))
    p.blob([(-.3, .3), (.7, .25), (2, .55), (3.2, .45), (3.75, 1), (3.5, 1.9), (2.2, 1.95), (.9, 2.05), (.1, 1.5)],
           main)
    coat.marks(p, [(1.5, .6), (2.4, .55), (2.9, 1.1), (2.3, 1.55), (1.6, 1.3)],
        [[(x, .5), (x+.12, 1.0), (x+.02, 1.35)] for x in (1.2, 1.7, 2.2, 2.7, 3.2)])
    p.blob([(.8, 1.85), (1.5, 1.72), (2.3, 1.68), (3.2, 1.72), (2.3, 1.93), (1.4, 2.0)], _mix(main, coat.belly, .6))
    for x in (.75, 3.25):
        p.taper([(x, 1.3), (x-.05, 3.1)], main, .62*t, .38*t)
        p.ellipse(x-.12, 3.22, .36*t, .2, coat.paw)

def _lie(p, coat, t):
    main,bib = coat.main,coat.pattern == 'bib'
    p.blob([(-.2, .3), (.8, .1), (2.2, .15), (3.4, .5), (3.9, 1.3), (3.3, 1.75), (1.5, 1.8), (0, 1.75), (-.5, 1.2)],
           main)
    coat.marks(p, [(1.5, .2), (2.5, .25), (2.9, .8), (2.2, 1.2), (1.5, .9)],
        [[(x, .14), (x+.14, .6), (x+.02, 1.0)] for x in (1.3, 1.8, 2.3, 2.8)])
    p.blob([(2.2, 1.1), (3., .7), (3.75, 1.2), (3.4, 1.75), (2.5, 1.75)], _darker(main, .12))
    p.ellipse(2.5, 1.68, .55, .2, coat.belly if bib else main)
    for x in (-.5, .35):
        p.taper([(x+.5, 1.45), (x-.15, 1.62)], _lighter(main, .08), .5*t, .42*t)
        p.ellipse(x-.25, 1.62, .3*t, .2, coat.belly if bib else _lighter(main, .16))

def _cat_tail(p, r, coat, pose):
    bend = r.uniform(-.4, .5)
    points = dict(sit=[(.8, 3.1), (1.8, 3), (1.95, 2.1), (1.6+bend*.5, 1.4)],
                  stand=[(3.35, .85), (4.05, .55), (4.3, -.45), (3.95+bend, -1.25)],
                  lie=[(3.4, 1.4), (4.4, 1.7), (4.5, 1), (4.2, .6)])[pose]
    p.taper(points, coat.main, .4, .26)
    if coat.pattern != 'plain':
        p.taper(_smooth(points, False)[-9:], coat.belly if coat.pattern == 'bib' else coat.mark, .28, .24)

def _cat_head(p, r, coat):
    main,white = coat.main,_lighter(coat.main, .28) if coat.pattern == 'plain' else coat.belly
    spread,tall,pink = r.uniform(-.08, .1),r.uniform(1.35, 1.6),_mix(_lighter(main), (232, 150, 150), .6)
    for s in (-1, 1):   # ears
        tip = s*(.82+spread),-tall
        sides = [(s*.98, -.3), (s*1.02, -.85), tip],[tip, (s*.5, -1.12), (s*.12, -.72)]
        p.polygon(np.concatenate([_smooth(o, False) for o in sides]), coat.ears[s > 0])
        p.polygon([(s*.86, -.55), (s*(.79+spread), -tall+.28), (s*.38, -.78)], pink)
        for k in (.55, .68): p.taper([(s*k, -.62), (s*(k+.06), -1.0)], _lighter(main, .5), .1, .02)
    p.even([(0, -.88), (.62, -.74), (.98, -.2), (1.08, .3), (.7, .72), (0, .88)], main)
    coat.marks(p, [(.1, -.84), (.62, -.74), (.97, -.2), (.85, .15), (.4, .12), (.12, -.3)],
        [[(x, -.84+abs(x)*.2), (x*.75, -.42)] for x in (-.28, 0, .28)], .14)
    coat.marks(p, (), [[(s*1.03, y), (s*.68, y+.06)] for s in (-1, 1) for y in (.05, .32)], .13, .03)
    if coat.pattern == 'bib': p.even([(0, -.5), (.16, .1), (.55, .4), (.4, .8), (0, .88)], white)
    for x,y,rx,ry in ((-.24, .42, .32, .25), (.24, .42, .32, .25), (0, .62, .22, .17)): p.ellipse(x, y, rx, ry, white)
    iris = r.choice([(122, 176, 92), (214, 178, 64), (98, 164, 198), (170, 190, 84), (206, 138, 52)])
    size,slit,asleep = r.uniform(.26, .33),r.uniform(.1, .3),r.random() < .08
    for s in (-1, 1):
        q = p.inner(s*.44, -.1)
        almond = np.array([(-1.1*size, .08), (-.3*size, -.75*size), (.6*size, -.68*size), (1.15*size, -.12),
                           (.4*size, .62*size), (-.45*size, .6*size)])*(s, 1)
        if asleep: q.line([(-.26, 0), (0, .13), (.26, 0)], _darker(coat.line), .06); continue
        q.blob(almond*1.16, _darker(main, .7))
        q.blob(almond, iris)
        q.ellipse(0, 0, size*slit, size*.62, (16, 14, 18))
        q.ellipse(-.245*size, -.28*size, .182*size, .182*size, (255, 255, 255))
    p.blob([(-.15, .2), (0, .17), (.15, .2), (.06, .33), (0, .37), (-.06, .33)],
           r.choice([(222, 130, 132), (196, 108, 108), (92, 64, 66)]))
    whisker = (250, 250, 246) if sum(main) < 600 else (110, 104, 104)
    for s in (-1, 1):
        p.line([(0, .36), (s*.03, .5), (s*.17, .56), (s*.3, .5)], _darker(white, .55), .045)
        for k in (-1, 0, 1): p.taper([(s*.36, .42+k*.07), (s*.95, .36+k*.16), (s*1.42, .42+k*.27)], whisker, .04, .02)

def _dog_tail(p, r, coat, pose):
    up = r.uniform(-.3, .5)
    points = dict(sit=[(.7, 2.9), (1.5, 2.7), (1.8, 2.2-up*.4)], stand=[(3.25, .85), (3.9, .6-up*.3), (4.3, .25-up)],
                  lie=[(3.3, 1.6), (3.95, 1.35-up*.3), (4.35, 1.-up)])[pose]
    p.taper(points, coat.main, .5, .2)
    if coat.pattern in ('bib', 'patches'): p.taper(_smooth(points, False)[-6:], coat.belly, .3, .18)

def _dog_head(p, r, coat):
    main,white = coat.main,_lighter(coat.main, .25) if coat.pattern == 'plain' else coat.belly
    p.even([(0, -1.), (.6, -.86), (.88, -.3), (.8, .3), (.55, .8), (0, 1.)], main)
    coat.marks(p, [(.12, -.9), (.6, -.85), (.87, -.3), (.72, .12), (.3, .1), (.12, -.3)],
        [[(s*.6, y), (s*.2, y+.1)] for s in (-1, 1) for y in (-.7, -.5)], .1, .03)
    if coat.pattern == 'bib': p.even([(0, -.9), (.14, -.3), (.5, .3), (.4, .9)], white)
    long,wide = r.uniform(.75, 1.35),r.uniform(.9, 1.2)
    ear = coat.mark if coat.pattern in ('patches', 'stripes') else r.choice([_darker(main, .28), _darker(main, .45),
                                                                             _lighter(main, .15)])
    folded = r.random() < .25
    for s in (-1, 1):
        o = s*r.uniform(-.08, .12)
        p.blob([(s*.3, -.86), (s*.7, -1.14), (s*1.12, -.9), (s*1.2+o, -.32), (s*1.02, -.2), (s*.78, -.6)] if folded else
               [(s*.42, -.9), (s*.8, -.94), (s*1.1*wide+o, -.5), (s*1.18*wide+o, -.5+long*.7),
                (s*.98*wide+o, -.45+long), (s*.8, -.4+long*.6), (s*.74, -.3)], ear)
        p.line([(s*.5, -.82), (s*.74, -.55), (s*.78, -.25)], _darker(ear, .25), .035)
    snout = r.uniform(.4, .52)
    if r.random() < .7:   # the tongue
        out = r.uniform(.3, .62)
        p.even([(.2, .72), (.24, .8+out*.5), (.12, .86+out)], (232, 116, 130))
        p.line([(0, .8), (0, .78+out*.8)], (196, 84, 100), .04)
    p.even([(0, 0), (.3, .1), (snout+.06, .45), (.42, .78), (.16, .84), (0, .76)], white)
    for s in (-1, 1):
        p.line([(0, .5), (s*.03, .66), (s*.22, .76), (s*.38, .66)], _darker(white, .6), .05)
        for k in range(2): p.ellipse(s*(.2+.12*k), .52+.04*k, .022, .022, _darker(white, .6))
    nose = r.choice([(38, 32, 36), (58, 42, 40), (30, 28, 34)])
    p.even([(0, .06), (.24, .14), (.2, .34), (0, .46)], nose)
    p.ellipse(-.07, .17, .08, .04, _lighter(nose, .5))
    iris,size = r.choice([(72, 46, 32), (96, 60, 36), (52, 36, 30), (72, 46, 32), (112, 150, 178)]),r.uniform(.15, .2)
    for s in (-1, 1):
        q = p.inner(s*.37, -.2)
        for y,rx,ry,c in ((0, 1.18, 1.2, _darker(main, .6)), (0, 1.06, 1.06, (244, 240, 234)), (.01, .88, .9, iris),
                          (.01, .5, .5, (16, 14, 18))): q.ellipse(0, y, rx*size, ry*size, c)
        q.ellipse(-.35*size, -.4*size, .26*size, .26*size, (255, 255, 255))
        q.taper([(-s*.16, -.3), (s*.08, -.36), (s*.2, -.26)], (_darker if coat.light else _lighter)(main), .07, .04)

_POSES = dict(   # what it takes up, in radii of the head, and its shadow
    face=((-1.45, -1.7, 1.45, 1.35), None, None), sit=((-2., -1.7, 2., 3.6), (0, 3.4, 1.6), _sit),
    stand=((-1.5, -1.7, 4.9, 3.5), (2., 3.25, 2.3), _stand), lie=((-1.5, -1.7, 4.9, 2.0), (1.6, 1.75, 2.5), _lie))
def _animal(img, r, words, head, tail, thick):
    pose,coat = r.choice(['face', 'face', 'sit', 'sit', 'stand', 'lie']),_Coat(r, words)
    box,shadow,body = _POSES[pose]
    p = _stage(img, r, box, .05 if body else .14)
    if body:
        p.shadow(*shadow)
        tail(p, r, coat, pose)
        body(p, coat, thick)
    else:
        p.even([(.6, .5), (1.2, 1.5), (1.9, 3.5)], _darker(coat.main, .1))
        p.even([(.4, .8), (.7, 1.8), (.5, 3.5)], coat.belly)
    if r.random() < .35: p.taper([(-.58, .76), (0, 1.04), (.58, .76)], _hsv(r.random(), .7, .8), .18, .18)   # a collar
    head(p.inner(0, 0, 1, r.gauss(0, .12)), r, coat)

# name -> its box (left, top, right, bottom) and shapes: a colour, and an ellipse (x, y, rx, ry) or an outline's points
_THINGS = json.loads((package_files('catdog')/'sample/things.json').read_text(encoding='utf8'))

def _thing(img, r, words):
    box,shapes = _THINGS[drawable(' '.join(words))].values()
    main,other = (_hsv(r.random(), r.uniform(.2, .85), r.uniform(.4, .95)) for _ in range(2))
    green = _hsv(r.uniform(.22, .4), r.uniform(.4, .7), r.uniform(.35, .75))
    colours = dict(main=main, other=other, dark=_darker(other), light=_lighter(main, .45), green=green,
                   white=(240, 240, 236), brown=(112, 82, 58), black=(34, 34, 38), glass=(160, 196, 216),
                   yellow=(244, 200, 70))
    p,stretch = _stage(img, r, box, .08),(r.uniform(.8, 1), r.uniform(.8, 1))
    p.shadow(0, box[3], box[2]*.8)
    for colour,o in shapes:
        if isinstance(o[0], list): p.polygon(np.array(o)*stretch, colours[colour])
        else: p.ellipse(*np.array(o)*(*stretch, *stretch), colours[colour])

def _emblem(img, r, words):
    "A large star amid small ones: the `words` determine their shapes, colours and arrangement, and `r` varies them"
    t = Random(' '.join(words))
    def _star():
        n,radii = t.randint(2, 7),(1, t.uniform(.35, .85))
        points = [(radii[k%2]*np.sin(k*np.pi/n), -radii[k%2]*np.cos(k*np.pi/n)) for k in range(2*n)]
        return np.array(_smooth(points) if t.random() < .5 else points)
    large,small,n,turn,reach = _star(),_star(),t.randint(4, 8),t.choice([0, 3, 5.4, 7]),t.uniform(.6, 1.2)
    hue = t.random()
    hues = hue, hue + t.choice([.15, .33, .5])
    p = _stage(img, r, (-1.9, -1.9, 1.9, 1.9), .25)
    main,other = (_hsv(o + r.gauss(0, .03), r.uniform(.5, .85), r.uniform(.5, .95)) for o in hues)
    for size,colour in ((1.1, main), (.8, _lighter(main, .2))): p.polygon(large*size, colour)
    for k in np.linspace(-1, 1, n):
        x,y = reach*(np.cos(turn*k) if turn else k*1.2),reach*np.sin(turn*k)
        q = p.inner(x*1.3 + r.gauss(0, .05), y*1.3 + r.gauss(0, .05), r.uniform(.3, .4), r.gauss(0, .3))
        for size,colour in ((1, other), (.5, _lighter(other, .4))): q.polygon(small*size, colour)

DRAWABLE = dict(cat=partial(_animal, head=_cat_head, tail=_cat_tail, thick=.85),
                dog=partial(_animal, head=_dog_head, tail=_dog_tail, thick=1.1), **dict.fromkeys(_THINGS, _thing))

def words_of(
    text:str # A label or search term
) -> list: # Lowercase words
    "Split `text` into words"
    return re.findall(r'\w+', str(text).lower().replace('_', ' '))

def drawable(
    label:str # A label or search term
) -> str|None: # A key of `DRAWABLE`, or None
    "Return the first word of `label` that has a drawing of its own"
    return next((o for w in words_of(label) for o in (w, w.removesuffix('s')) if o in DRAWABLE), None)

def random_size(
    r:Random # Source of randomness
) -> tuple: # Width and height in pixels
    "Choose an image size as found on the web"
    side,ratio = r.randint(260, 620),r.choice([4/3, 4/3, 3/2, 1, 1, 3/4, 2/3, 16/9, r.uniform(.6, 1.8)])
    return (side, round(side/ratio)) if ratio > 1 else (round(side*ratio), side)

_SCENES = _outdoors,_room,_plain,_pattern,_blurred
def draw(
    label:str, # A key of `DRAWABLE`, with a coat colour such as 'black' if wanted; any other word gets an emblem
    seed:int|str=0, # The same label and seed always give the same image
    size:tuple=None # Width and height in pixels; None: chosen by `seed`
) -> Image.Image: # RGB
    "Draw `label` on a random background"
    r,words = Random(f'{label}, {seed}'),words_of(label)
    chosen = random_size(r)
    w,h = size or chosen
    k = 2 if w*h < 1_000_000 else 1   # drawn at twice the size, for smooth edges
    img = r.choice(_SCENES)((w*k, h*k), r)
    DRAWABLE.get(drawable(label), _emblem)(img, r, words)
    return img.reduce(k) if k > 1 else img

PHOTOS = {o: Path(str(package_files('catdog')/'sample'/'photos'/f'{o}.jpg')) for o in ('cat', 'coffee')}
