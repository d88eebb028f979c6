"""Statistics of answers: confidence interval, confusion matrix, error by label, calibration error"""

import numpy as np
from scipy.stats import binomtest

def error_interval(
    wrong:int, # Number of wrong answers
    n:int # Number of answers
) -> tuple: # (error, low, high), each 0 to 1
    "The error rate and its 95% Wilson interval"
    interval = binomtest(wrong, n).proportion_ci(0.95, method='wilson')
    return wrong/n, float(interval.low), float(interval.high)

def confusion_counts(
    logits, # Scores or probabilities, array or tensor of shape (n,labels)
    truth # Indices of the right labels, array or tensor of shape (n,)
) -> np.ndarray: # int, shape (labels,labels): rows are the truth, columns the answers
    "The confusion matrix"
    n = logits.shape[1]
    return np.bincount(np.asarray(truth)*n + np.asarray(logits.argmax(1)), minlength=n*n).reshape(n, n)

def label_errors(
    counts:np.ndarray # From `confusion_counts`
) -> list: # (wrong, n) for each label
    "The number of wrong answers and of all answers for each label"
    return [(int(row.sum() - row[i]), int(row.sum())) for i,row in enumerate(np.asarray(counts))]

def balanced_error(
    counts:np.ndarray # From `confusion_counts`
) -> float: # 0 to 1
    "The mean of the error rates of the labels that have images"
    return float(np.mean([wrong/n for wrong,n in label_errors(counts) if n]))

def are_uneven(
    counts:np.ndarray # From `confusion_counts`
) -> bool:
    "Whether the largest label has over 1.5 times as many images as the smallest"
    sizes = [n for _,n in label_errors(counts)]
    return max(sizes) > 1.5*min(sizes)

def calibration_error(
    probabilities:np.ndarray, # Shape (n,labels)
    truth:np.ndarray, # Indices of the right labels, shape (n,)
    bins:int=15 # Number of bins of equal width
) -> float: # 0 to 1
    "The expected calibration error (Guo et al. 2017, arXiv:1706.04599)"
    sure,right = probabilities.max(1),probabilities.argmax(1) == truth
    which = np.minimum((sure*bins).astype(int), bins - 1)
    return float(sum(abs(sure[which == i].sum() - right[which == i].sum()) for i in range(bins))/len(truth))
