"""How much a measured figure says: Wilson interval, confusion counts, calibration error"""

import numpy as np
from scipy.stats import binomtest

def error_interval(
    wrong:int, # How many answers were wrong
    n:int # Of how many
) -> tuple: # (error, low, high), shares from 0 to 1
    "The share `wrong` of `n` with its 95% Wilson interval"
    interval = binomtest(wrong, n).proportion_ci(0.95, method='wilson')
    return wrong/n, float(interval.low), float(interval.high)

def confusion_counts(
    logits, # Scores, array or tensor of shape (n,labels); probabilities do as well
    truth # Index of the right label, array or tensor of shape (n,)
) -> np.ndarray: # Counts of shape (labels,labels); rows are the truth, columns the answers
    "How often each label in `truth` got each answer, the one with the highest of its `logits`"
    n = logits.shape[1]
    return np.bincount(np.asarray(truth)*n + np.asarray(logits.argmax(1)), minlength=n*n).reshape(n, n)

def label_errors(
    counts:np.ndarray # From `confusion_counts`
) -> list: # (wrong, n) for each label; n is 0 where nothing was measured
    "How many answers about each label in `counts` were wrong, of how many"
    return [(int(row.sum() - row[i]), int(row.sum())) for i,row in enumerate(np.asarray(counts))]

def balanced_error(
    counts:np.ndarray # From `confusion_counts`
) -> float: # From 0 to 1
    "The mean of the labels' errors in `counts`, each counted once, without those that have no images"
    return float(np.mean([wrong/n for wrong,n in label_errors(counts) if n]))

def are_uneven(
    counts:np.ndarray # From `confusion_counts`
) -> bool: # Then one figure is not enough
    "Has the largest label in `counts` more than 1.5 times as many images as the smallest?"
    sizes = [n for _,n in label_errors(counts)]
    return max(sizes) > 1.5*min(sizes)

def calibration_error(
    probabilities:np.ndarray, # Of shape (n,labels)
    truth:np.ndarray, # Index of the right label, shape (n,)
    bins:int=15 # Bins of equal width
) -> float: # From 0 to 1
    "Expected calibration error of `probabilities` in `bins` (Guo et al. 2017, arXiv:1706.04599)"
    sure,right = probabilities.max(1),probabilities.argmax(1) == truth
    which = np.minimum((sure*bins).astype(int), bins - 1)
    return float(sum(abs(sure[which == i].sum() - right[which == i].sum()) for i in range(bins))/len(truth))
